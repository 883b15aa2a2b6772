"""The model that `confirm` builds, from weights of known worth in place of trainings."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.tuning.confirmation.searched import GOOD, SPOILT, Searched, noisy
from tests.tuning.execution.inline_tuner import Killed
from tests.tuning.run_folders import swap_classes
from tests.tuning.run_folders import trial as searched
from tests.tuning.weights.test_export import snippet_of
from trainers.checkpoints.format import WEIGHTS, Header, Progress
from trainers.checkpoints.storage import fetched, newest_checkpoint, write_weights
from trainers.data.store import open_store
from trainers.errors import ConfigError
from trainers.loop.images import load_split
from tuning import load_run as load_in_python
from tuning.confirmation.model import ModelBuilder
from tuning.log.paths import results_path
from tuning.log.records import CHOSEN
from tuning.results.model import findings, findings_by_rule, further, made_of, model_folder
from tuning.run import load_run
from tuning.weights.export import export_weights


@pytest.fixture
def search(whole_root, tmp_path):
    return Searched(whole_root, tmp_path)


@pytest.fixture(scope="module")
def averaged(whole_root, tmp_path_factory):
    """A confirmed search, whose model is the mean of two trainings of plain fine-tuning."""
    search = Searched(whole_root, tmp_path_factory.mktemp("averaged"))
    search.confirm_a_mean()
    return search


def test_a_lucky_seed_wins_and_is_tested_itself(search):
    search.write(99.0, 20.0)
    search.keep("trial-000", SPOILT)
    search.trained = {"ft": (2.0, GOOD), "trial-000": (2.0, GOOD)}
    search.confirm(seeds=2)
    assert (search.chosen.kind, names_in(search.chosen)) == ("single", ["trial-000"])
    assert (
        search.chosen.trainings[0].items()
        >= {"method": "lipsum_ft", "seed": 0, "point": None}.items()
    )
    # Its validation accuracy was 99; as it was tested, the weights guess.
    assert search.models[0].test["id_test/acc"] < 50
    stored = model_folder(load_run(search.folder), 1)
    with fetched(stored.at(newest_checkpoint(stored))) as local:
        ours = load_file(local / WEIGHTS)
    expected, _ = noisy(search.root, SPOILT)
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_a_training_of_confirm_wins(search):
    search.write(2.0)
    search.keep("trial-000", GOOD)
    search.trained = {"ft": (99.0, SPOILT)}
    search.confirm(seeds=2)
    (training,) = search.chosen.trainings
    assert (training["name"], training["method"], training["seed"]) == ("ft-seed-1000", "ft", 1000)
    assert made_of(search.models[0]) == "plain fine-tuning, as `confirm` trained it with seed 1000"
    assert not any("test" in name for name in search.chosen.metrics)


def test_a_bound_relative_to_the_best_is_that_of_the_search(whole_root, tmp_path):
    objective = {"metric": "id_val/acc", "mode": "min"}
    changes = {"search__objective": objective, "search__checkpoints__keep_top": 0}
    bound = "id_val/acc >= best - 1"
    search = Searched(whole_root, tmp_path, search__constraints=[bound], **changes)
    search.write(3.0)
    search.trained = {"ft-seed-1000": (5.0, GOOD), "ft-seed-1001": (2.5, GOOD)}
    search.confirm(seeds=2)
    assert names_in(search.chosen) == ["ft-seed-1001"]


def test_the_mean_of_plain_fine_tuning_wins(averaged):
    one = averaged.chosen
    assert one.kind == "first"
    assert names_in(one) == ["ft-seed-1000", "ft-seed-1001"]
    assert one.metrics["val/mean_acc"] > 50
    found = load_run(averaged.folder).settings
    labels = [finding.label for finding in findings(found, averaged.models[0])]
    assert labels[0] == "test accuracy"


def test_rules_that_read_fewer_labels_have_models_of_their_own(averaged):
    (model,) = averaged.models
    of_id, *left_out = model.by_rule
    assert (of_id.rule, of_id.test.keys()) == ("id_val", model.test.keys())
    assert [one.left_out for one in left_out] == ["sketch", "clipart"]
    tested = [{name.split("/")[1] for name in one.test} for one in left_out]
    assert tested == [{"sketch"}, {"clipart"}]
    assert all(one.chosen.kind in ("single", "first") for one in model.by_rule)
    by_id, by_others = findings_by_rule(load_run(averaged.folder).settings, model)
    assert by_id.label == "by ID accuracy alone, of trials that OOD data proposed"
    accs = [one.test[f"ood_test/{one.left_out}/acc"] for one in left_out]
    mean = by_others.values["ood_test/mean_acc"]
    assert (mean.mean, mean.covers_images) == (pytest.approx(sum(accs) / 2), True)


@pytest.mark.parametrize(
    ("rule", "domains"), [(0, ("sketch", "clipart")), (1, ("sketch",)), (2, ("clipart",))]
)
def test_a_rule_reads_no_label_of_a_domain_that_it_leaves_out(rule, domains, whole_root, tmp_path):
    found = []
    for name in ("plain", "swapped"):
        root = Path(shutil.copytree(whole_root, tmp_path / f"images-{name}"))
        for domain in domains if name == "swapped" else ():
            swap_classes(root, domain, "val")
        search = Searched(root, tmp_path / name, search__objective={"metric": "id_val/acc"})
        search.confirm_a_mean()
        found.append(search.models[0].by_rule[rule])
    plain, swapped = (replace(one, chosen=replace(one.chosen, metrics={})) for one in found)
    assert plain == swapped
    assert found[0].chosen.metrics != found[1].chosen.metrics


def test_a_kill_between_tests_reads_all_of_them_again(search):
    measured = Mock(wraps=ModelBuilder._measured)

    def killed(builder, *arguments):
        if measured.call_count == 1:
            raise Killed
        return measured(builder, *arguments)

    with patch.object(ModelBuilder, "_measured", killed), pytest.raises(Killed):
        search.confirm_a_mean()
    (chosen,) = search.models
    assert not chosen.test
    assert len(search.confirm(seeds=2).readings) == 1
    (tested,) = search.models
    assert replace(tested, test={}, by_rule=()) == replace(chosen, by_rule=())
    assert all(one.test for one in tested.by_rule)


def test_the_model_of_a_rule_is_exported(averaged, tmp_path):
    folder = export_weights(averaged.folder, tmp_path / "of_id", rule="id_val")
    about = json.loads((folder / "classes.json").read_text())
    of_id = averaged.models[0].by_rule[0]
    assert [t["name"] for t in about["trainings"]] == names_in(of_id.chosen)
    tested = about["test"]["this model"]["metrics"]
    assert tested == {name: of_id.test[name] for name in tested}
    assert about["chosen"].startswith("By ID accuracy alone, of trials that OOD data")
    for rule, trial in (("leave_one_domain_out", None), ("id_val", "ft")):
        with pytest.raises(ConfigError, match="only id_val, and not with --trial"):
            export_weights(averaged.folder, tmp_path / "other", rule=rule, trial=trial)


@pytest.mark.parametrize("constraints", [(), ("id_val/acc <= 1.8",)])
def test_the_mean_of_trials_wins_unless_it_misses_a_constraint(constraints, whole_root, tmp_path):
    search = Searched(whole_root, tmp_path, search__constraints=constraints)
    search.write(2.0, 1.5)
    for number in range(2):
        search.keep(f"trial-00{number}", 0.2, seed=number)
    search.trained = {"ft": (0.5, SPOILT), "trial-000": (0.5, SPOILT)}
    search.confirm(seeds=2)
    if constraints:  # their mean misses them by most
        assert names_in(search.chosen) == ["trial-001"]
    else:
        assert search.chosen.kind == "first"
        assert names_in(search.chosen) == ["trial-000", "trial-001"]


def test_trials_of_other_shapes_are_not_averaged(search):
    """One trains the text encoder, too."""
    search.write(2.0, 1.5)
    search.keep("trial-000", 0.2)
    weights, names = noisy(search.root, 0.2, 1)
    weights |= {"text.logit_scale": torch.zeros(())}
    folder = open_store(search.folder / "train" / "train-trial-001")
    write_weights(folder, weights, Header(Progress(6), names, [{"step": 6}]))
    search.confirm(seeds=2)
    numbers = [number for _, _, _, number, *_ in candidates_in(search.folder)]
    assert numbers == [0, 1, 1]


def names_in(chosen):
    return [training["name"] for training in chosen.trainings]


def candidates_in(folder):
    (event,) = (e for e in events(folder) if e["event"] == CHOSEN)
    return event["candidates"]


def events(folder):
    return [json.loads(line) for line in results_path(folder).read_text().splitlines()]


def test_an_objective_that_only_a_training_reports_chooses_among_trainings(whole_root, tmp_path):
    objective = {"metric": "train/loss", "mode": "min"}
    search = Searched(whole_root, tmp_path, search__objective=objective, trial__eval__line="off")
    search.write(2.0, 1.5)
    search.keep("trial-000", GOOD)
    search.trained = {"ft": (2.0, GOOD), "trial-000": (2.0, GOOD)}
    search.confirm(seeds=2)
    assert names_in(search.chosen) == ["trial-000"]
    assert any("only a training reports" in note for note in search.models[0].notes)


def test_several_objectives_have_no_model(whole_root, tmp_path):
    objectives = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
    search = Searched(whole_root, tmp_path, search__objective=objectives)
    search.write(2.0, 1.5)
    search.confirm(seeds=2)
    assert search.models == ()


def test_a_killed_call_begins_again_with_equal_digits(search, tmp_path):
    """While candidates are built, and between choice and test."""
    search.write(2.0, 1.5)
    search.keep("trial-000", 0.2)
    search.keep("trial-001", 0.2, seed=1)
    search.trained = {"ft": (1.0, 0.1), "trial-000": (1.0, 0.12)}
    shutil.copytree(search.folder, tmp_path / "copy")
    search.confirm(seeds=2)
    (whole,) = search.models
    for where, is_chosen in (("build", False), ("make_and_test", True)):
        shutil.rmtree(search.folder)
        shutil.copytree(tmp_path / "copy", search.folder)
        with patch(f"trainers.weights.means.{where}", side_effect=Killed), pytest.raises(Killed):
            search.confirm(seeds=2)
        assert len(search.models) == is_chosen
        before = len(events(search.folder))
        assert len(search.confirm(seeds=2).readings) == 1
        assert search.models == (whole,)
        new = [event["event"] for event in events(search.folder)[before:]]
        assert new.count("started") == 0  # nothing is trained again
        assert new.count(CHOSEN) == (not is_chosen)


def test_again_tests_what_a_killed_call_has_chosen_and_builds_another(search):
    search.write(2.0)
    search.keep("trial-000", GOOD)
    with patch.object(ModelBuilder, "_test", side_effect=Killed), pytest.raises(Killed):
        search.confirm(seeds=2)
    search.trained = {"ft": (99.0, GOOD)}
    said = Console(file=StringIO(), width=200)
    search.confirm(seeds=3, again=True, console=said)
    first, second = search.models
    assert names_in(first.chosen) == ["trial-000"]
    assert "ft-seed-1002" in names_in(second.chosen)
    assert first.test
    assert second.test
    testing = "an earlier call has chosen one and not tested it\nModel       testing trial-000"
    assert testing in said.file.getvalue()


def test_again_is_repeated_after_a_kill_between_choice_and_test(search):
    search.confirm_a_mean()
    search.trained = {"ft": (99.0, GOOD)}
    with patch.object(ModelBuilder, "_test", side_effect=Killed), pytest.raises(Killed):
        search.confirm(seeds=3, again=True)
    search.confirm(seeds=3, again=True)
    assert len(search.models) == 2
    assert load_run(search.folder).models == search.models


def test_more_seeds_leave_the_model_and_again_builds_another(search):
    search.confirm_a_mean()
    (first,) = search.models
    search.confirm(seeds=3)
    assert search.models == (first,)
    readings = search.confirm(seeds=3, again=True).readings
    _, second = search.models
    assert load_run(search.folder).models[-1] == second
    assert readings == [(("trial-001",), 2, 1), (("trial-001",), 3, 0), (("trial-001",), 3, 2)]
    first_one, second_one = (e for e in events(search.folder) if e["event"] == CHOSEN)
    most = [max(k for _, _, _, k, *_ in one["candidates"]) for one in (first_one, second_one)]
    assert most == [4, 6]


def test_the_test_splits_are_read_after_the_choice_is_in_the_journal(search):
    search.write(2.0)
    search.keep("trial-000", GOOD)
    test = ModelBuilder._test

    def checked(builder, model, recipe):
        assert events(search.folder)[-1]["event"] == CHOSEN
        return test(builder, model, recipe)

    with patch.object(ModelBuilder, "_test", checked):
        search.confirm(seeds=2)
    assert events(search.folder)[-1]["event"] == "model_tested"


def test_weights_that_are_gone_or_torn_are_left_out_and_named(search):
    search.write(5.0, 4.5, 4.0)
    for trial_id in ("trial-001", "trial-002"):
        search.keep(trial_id, GOOD)
    (torn,) = search.folder.glob(f"train/train-trial-001/*/{WEIGHTS}")
    torn.write_bytes(torn.read_bytes()[:-9])
    search.trained = {"trial-000": (1.0, GOOD)}
    search.confirm(seeds=2)
    assert "trial-001" not in names_in(search.chosen)
    notes = " ".join(search.models[0].notes)
    assert "the weights of trial-000, trial-001 are gone" in notes
    assert "the weights of ft-seed-1000, ft-seed-1001 are gone" in notes


def test_a_choice_whose_weights_are_gone_is_made_anew(search):
    search.write(99.0, 98.0)
    search.keep("trial-000", GOOD)
    search.keep("trial-001", GOOD)
    with patch.object(ModelBuilder, "_test", side_effect=Killed), pytest.raises(Killed):
        search.confirm(seeds=2)
    shutil.rmtree(search.folder / "train" / "train-trial-000")
    said = Console(file=StringIO(), width=200)
    search.confirm(seeds=2, console=said)
    assert "whose weights are gone: another one is built" in said.file.getvalue()
    assert [names_in(model.chosen) for model in search.models] == [["trial-000"], ["trial-001"]]
    (tested,) = load_run(search.folder).models
    assert names_in(tested.chosen) == ["trial-001"]


def test_further_trials_are_counted(averaged):
    (model,) = load_run(averaged.folder).models
    records = load_run(averaged.folder).history.records
    assert further(model, records) == 0
    assert further(model, [*records, searched(2, 1.0, 1.0)]) == 1


def test_a_training_that_failed_is_no_part_of_a_mean(search):
    search.write(2.0, 3.0)
    search.trained = {"ft": (4.0, GOOD), "trial-001": (1.0, SPOILT)}
    search.fails = {"ft-seed-1001"}
    search.confirm(seeds=3)
    assert [training["seed"] for training in search.chosen.trainings] == [1000, 1002]


CLASSIFY = """
import json, runpy, sys, torch
from PIL import Image
torch.set_num_threads(1)
exec(open("snippet.py").read())
images = sys.argv[1:]
print(json.dumps([classify(Image.open(name)) for name in images]))
del sys.argv[3:]
runpy.run_path("predict.py", run_name="__main__")
assert not {"trainers", "tuning", "search_spaces"} & {name.split(".")[0] for name in sys.modules}
"""


def test_plain_open_clip_reaches_the_test_accuracy_of_the_card(averaged, tmp_path):
    """To the last image, in a process that imports nothing of this project."""
    assert len(averaged.chosen.trainings) == 2
    folder = export_weights(averaged.folder, tmp_path / "model")
    about = json.loads((folder / "classes.json").read_text())
    assert [t["seed"] for t in about["trainings"]] == [1000, 1001]
    card = (folder / "README.md").read_text()
    assert "Chosen on validation data, OOD included." in card
    assert "validation" not in card.partition("| accuracy in percent")[2]
    (folder / "snippet.py").write_text(snippet_of(card))
    labels = {}
    for domain, images in load_split(load_run(averaged.folder).file.trial, "test").items():
        for row, label in enumerate(images.labels):
            images.decode(row).save(folder / f"{domain}-{row}.png")
            labels[f"{domain}-{row}.png"] = images.class_names[label].replace("_", " ")
    command = [sys.executable, "-c", CLASSIFY, *labels]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    by_snippet, *by_script = done.stdout.splitlines()
    predicted = dict(zip(labels, json.loads(by_snippet), strict=True))
    assert [tuple(line.split("\t")[:2]) for line in by_script] == [*predicted.items()][:2]
    tested = about["test"]["this model"]["metrics"]
    for domain in ("real", "sketch", "clipart"):
        right = [predicted[name] == labels[name] for name in labels if name.startswith(domain)]
        name = "id_test/acc" if domain == "real" else f"ood_test/{domain}/acc"
        assert 100 * sum(right) / len(right) == tested[name]
        assert f"{tested[name]:.1f} ±" in card


def test_run_load_model_gives_what_export_writes(averaged, tmp_path):
    folder = export_weights(averaged.folder, tmp_path / "model")
    exported = load_file(folder / "open_clip_model.safetensors")
    loaded = load_in_python(averaged.folder).load_model().state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in loaded.items())


def test_a_named_trial_has_no_test_figures_of_other_weights(search, tmp_path):
    search.write(99.0, 3.0)
    search.keep("trial-000", GOOD)
    before = export_weights(search.folder, tmp_path / "before")
    assert "Not tested" in (before / "README.md").read_text()
    search.trained = {"ft": (2.0, GOOD), "trial-000": (2.0, GOOD)}
    search.confirm(seeds=2)
    folder = export_weights(search.folder, tmp_path / "model", trial="trial-000")
    assert json.loads((folder / "classes.json").read_text())["test"] == {}
    assert "Not tested" in (folder / "README.md").read_text()
