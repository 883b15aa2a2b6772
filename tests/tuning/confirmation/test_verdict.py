"""Which model is recommended and exported, before and after `confirm`."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_predictions, write_results
from tests.tuning.run_folders import search_file, swap_classes, write_run
from tuning.config.objectives import parse_constraint
from tuning.confirmation.verdict import better_search, findings, verdict
from tuning.runs.confirmation import confirm_history, results_of
from tuning.runs.run_folder import load_run
from tuning.views.answer import answer, commands_after

SEEDS = (1000, 1001)


def searched(folder, *trials):
    """A search whose trials end at these ID and OOD accuracies, beside a reference at 88 / 57."""
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, 88.0, 57.0),))
    return fakes.search_record(folder), [ft, *(fakes.trial(i, *at) for i, at in enumerate(trials))]


def confirmed(folder, seeds=SEEDS, off=0.0, **accs):
    """Write results of `confirm`: mean validation accuracy over two seeds, and on the test splits.

    The seeds are two points apart.

    Args:
        off: added to the ID accuracy on validation splits, which is 80.
    """
    results = {
        (name.replace("_", "-"), seed): {
            "val/mean_acc": validated + noise,
            "id_val/acc": 80.0 + off,
            "id_test/acc": tested + noise,
            "ood_test/mean_acc": tested + noise - 20,
        }
        for name, (validated, tested) in accs.items()
        for seed, noise in zip(seeds, (-1.0, 1.0), strict=False)
    }
    write_results(folder, results)


def commands(found):
    return commands_after(found.record, "mine", is_confirmed=found.seeds > 0)


def commands_of(found):
    return [command.split()[1] for command in commands(found)]


def test_the_best_trial_is_confirmed_and_exported(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (86.0, 64.0))
    found = verdict(search, records)
    assert (found.record, found.label) == (records[-1], "trial-001")
    assert found.why == search.selection
    confirm, export = commands(found)
    assert confirm.startswith("lipsum-tune confirm mine ")
    assert export.startswith("lipsum-tune export mine --output model ")
    assert "trial-001" in export
    stopped = verdict(search, [replace(record, outcome="stopped") for record in records])
    assert commands_of(stopped) == ["export"]  # a trial that has not finished is not confirmed


@pytest.mark.parametrize(
    ("of_ft", "trial", "won"),
    [((88.0, 57.0), (86.0, 57.0), "ft"), ((80.0, 57.0), (80.0, 58.0), "zero-shot")],
)
def test_a_reference_that_beats_all_trials_is_exported(of_ft, trial, won, tmp_path):
    search, (_, best) = searched(tmp_path, trial)
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, *of_ft),))
    found = verdict(search, [ft, best])
    assert (found.record.trial_id, found.record.kind) == (won, "reference")
    assert found.why.startswith("No trial is better: val/mean_acc = ")
    extend, export = commands(found)
    assert extend.startswith("lipsum-tune resume mine --trials +8 ")
    assert f"# {found.label}" in export


@pytest.mark.parametrize(("of_second", "won"), [(71.5, "ft"), (73.0, "trial-001")])
def test_fresh_seeds_decide_and_test_splits_do_not(of_second, won, tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))  # 73.5 and 73.0; FT 72.5
    confirmed(tmp_path, trial_000=(71.0, 95.0), trial_001=(of_second, 99.0), ft=(72.0, 60.0))
    found = verdict(search, records)
    assert (found.record.trial_id, found.seeds, commands_of(found)) == (won, 2, ["export"])
    values = found.why.partition("on the validation splits: val/mean_acc ")[2]
    if won == "ft":
        assert found.why.startswith("No trial is better. ")
        assert values == "untuned FT 72, trial-000 71, trial-001 71.5."


def test_repeats_that_chose_the_trial_do_not_vote_again(tmp_path):
    search, (ft, first, _) = searched(tmp_path, (86.0, 64.0), (80.0, 60.0))
    lucky = first.with_repeat(fakes.repeat(first, 1, 99.0, 99.0))
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    found = verdict(search, [ft, lucky])
    assert found.record.trial_id == "ft"
    assert "trial-000 75." in found.why


def test_terminal_and_page_say_what_fresh_seeds_found(tmp_path):
    search, records = searched(tmp_path, (86.0, 64.0))
    assert findings(search, records) == answer(search, records)
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    assert findings(search, records)[0].startswith("untuned FT. No trial is better. Compared")
    (tmp_path / "confirm" / "journal.jsonl").write_text("{}\n{}\n")
    *found, damaged = findings(search, records)
    assert found == answer(search, records)
    assert damaged.startswith("Results of confirm are left out")


def test_only_equal_seeds_are_compared(tmp_path):
    """The other trial diverged with the second seed, and was better with the first."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0), ft=(70.0, 50.0))
    confirmed(tmp_path, SEEDS[:1], trial_001=(90.0, 50.0))
    confirmed(tmp_path, (1001,), trial_001=(math.nan, 50.0))
    found = verdict(search, records)
    assert (found.record.trial_id, found.seeds) == ("trial-000", 2)


def test_a_failed_training_of_the_reference_does_not_leave_it_out(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0))
    confirmed(tmp_path, SEEDS[1:], ft=(80.0, 50.0))
    for outcome in ("finished", "failed"):  # of the reference beside the search
        found = verdict(search, [replace(records[0], outcome=outcome), *records[1:]])
        assert (found.record.trial_id, found.seeds) == ("ft", len(SEEDS) - 1)


def test_what_misses_the_bound_of_the_search_does_not_win(tmp_path):
    """The bound is 84.5, of the best ID accuracy that the search has seen."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.9, 61.0))
    bound = parse_constraint("id_val/acc >= best - 0.5", ["id_val/acc"])
    search = replace(search, constraints=(bound,))
    confirmed(tmp_path, trial_000=(75.0, 50.0))
    confirmed(tmp_path, off=4.8, trial_001=(73.0, 50.0))
    found = verdict(search, records)
    assert found.record.trial_id == "trial-001"


def test_a_new_best_trial_is_not_judged_by_the_seeds_of_others(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (89.0, 64.0))
    confirmed(tmp_path, trial_000=(71.0, 50.0), ft=(72.0, 60.0))
    found = verdict(search, records)
    assert (found.record.trial_id, found.why) == ("trial-001", search.selection)
    assert commands_of(found) == ["confirm", "export"]


def test_results_without_the_objective_choose_nothing(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    write_results(tmp_path, {("trial-000", 1000): {"id_test/acc": 50.0, "id_val/acc": 50.0}})
    found = verdict(search, records)
    assert (found.record.trial_id, found.why) == ("trial-000", search.selection)


@pytest.mark.ray
@pytest.mark.nightly
def test_a_search_that_loses_to_its_reference_exports_the_reference(
    whole_root, tmp_path, local_ray
):
    """FT moves the features; the trials, whose learning rates are tiny, hardly do."""
    lr = "{optim.lr: {type: float, low: 1.0e-8, high: 1.0e-7, log: true}}"
    settings = {
        "trial.data.root": whole_root, "trial.steps": 2, "trial.eval.every": 2,
        "trial.optim.batch_size": 8, "trial.method.text_count": 16,
        "search.space.parameters": lr, "search.scheduler": "{name: none}",
        "search.objective": "{metric: id_val/feature_distortion, mode: max}",
        "search.budget.trials": 2, "search.name": "mine",
    }  # fmt: skip
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def lipsum_tune(*words):
        command = [sys.executable, "-m", "tuning", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = lipsum_tune("search", "quickstart", *overrides)
    assert "lipsum-tune export mine --output model   # untuned FT, for open_clip\n" in said
    said = lipsum_tune("confirm", "mine", "--seeds", "2")
    assert "Best        untuned FT. No trial is better. Compared" in said
    assert "Compared by the means over 2 fresh seeds on the validation splits: " in said
    lipsum_tune("export", "mine", "--output", "after")
    assert json.loads((tmp_path / "after" / "classes.json").read_text())["trial"] == "ft"
    card = (tmp_path / "after" / "README.md").read_text()
    results = results_of(confirm_history(tmp_path / "runs" / "mine"))
    accs = [r.metrics["id_test/acc"] for (name, _), r in results.items() if name == "ft"]
    assert len(accs) == 2
    row = f"| untuned FT, test, mean of 2 fresh trainings | {sum(accs) / 2:.1f} |"
    assert row in card
    assert "| zero-shot, test |" in card


def said(*folders):
    return better_search([load_run(folder) for folder in folders])


def compared(root, folder, trials, images=None, **changes):
    """A finished search whose trials end at these ID and OOD accuracies.

    Args:
        images: number of validation images of each domain.
    """
    records = [fakes.trial(number, *accs) for number, accs in enumerate(trials)]
    write_run(folder, search_file(root, **changes), records)
    if images is not None:
        file = folder / "environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"val_images": {"real": images}}))
    return folder


def test_of_two_searches_the_better_one_is_named(images_root, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, ood in ((first, 62.0), (second, 64.0)):
        compared(images_root, folder, [(85.0, ood)], images=40_000)
    text = "second is ahead of first by val/mean_acc 74.5 to 73.5, on validation data."
    assert said(first, second) == f"{text} Confirm both with the same seeds before you choose."
    confirmed(first, trial_000=(73.0, 80.0))
    confirmed(second, trial_000=(74.0, 81.5))
    assert said(second, first).startswith(text)
    assert said(first, second).endswith(
        " second minus first in test accuracy over fresh seeds: OOD +1.5 [1.5, 1.5]; "
        "ID +1.5 [1.5, 1.5]. The intervals hold for new seeds on these images alone."
    )
    write_results(second, {("ft", 1000): {"id_test/acc": 1.0}}, splits={"real": "other"})
    assert said(first, second).endswith("before you choose.")


def test_test_accuracies_differ_by_more_than_seeds_and_images(images_root, tmp_path):
    right = {"first": np.arange(400) % 3 > 0, "second": np.arange(400) % 5 > 0}
    for name, of_images in right.items():
        folder = compared(images_root, tmp_path / name, [(85.0, 62.0)], trial__steps=len(name))
        confirmed(folder, trial_000=(73.0, 100 * of_images.mean()))
        for seed in SEEDS:
            of_domains = dict.fromkeys(("real", *fakes.DOMAINS), of_images)
            predicted = dict.fromkeys(("predicted", "zero_shot"), of_domains)
            write_predictions(folder, ("trial-000", seed), predicted)
    text = said(tmp_path / "second", tmp_path / "first")
    assert text.startswith(
        "second and first cannot be compared on validation data: they differ in trial.steps. "
        "second minus first in test accuracy over fresh seeds: OOD +13.5 ["
    )
    assert text.endswith("The intervals hold for new seeds and new images.")


def test_equal_searches_have_no_winner(images_root, tmp_path):
    a, b = (compared(images_root, tmp_path / name, [(85.0, 62.0)]) for name in "ab")
    assert said(a, b).startswith("No difference between a and b: val/mean_acc 73.5 to 73.5, on ")


def test_a_difference_within_the_margin_of_the_images_is_none(images_root, tmp_path):
    """Wilson's interval of 50 % on 400 images is 4.9 points to either side."""
    a, b, c = (
        compared(images_root, tmp_path / name, [(80.0, ood)], images=400)
        for name, ood in (("a", 60.0), ("b", 69.0), ("c", 71.0))
    )
    found = said(a, b)
    assert found.startswith("No difference between b and a: val/mean_acc 74.5 to 70, ± 4.9 points")
    assert said(a, c).startswith("c is ahead of a by val/mean_acc 75.5 to 70, on")
    assert said(a, b, c).startswith("No difference between c and b: ")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trial__model__name": "ViT-B-16-quickgelu"}, "trial.model"),
        ({"trial__steps": 80}, "trial.steps"),
        ({"search__objective": [{"metric": "id_val/acc"}]}, "search.objective"),
        ({"search__constraints": ["id_val/acc >= 9"]}, "search.constraints"),
        ({"trial__data__ood_domains": ["sketch"]}, "images"),
    ],
)
def test_searches_of_different_kinds_are_not_compared(changes, named, images_root, tmp_path):
    a = compared(images_root, tmp_path / "a", [(85.0, 62.0)])
    b = compared(images_root, tmp_path / "b", [(86.0, 66.0)], **changes)
    text = "a and b cannot be compared on validation data: they differ in"
    assert said(a, b) == f"{text} {named}."


def test_other_images_of_the_same_folders_are_not_compared(images_root, tmp_path):
    other = Path(shutil.copytree(images_root, tmp_path / "copy"))
    swap_classes(other, "real", "val")
    a = compared(images_root, tmp_path / "a", [(85.0, 62.0)])
    assert said(a, compared(other, tmp_path / "b", [(86.0, 66.0)])).endswith("differ in images.")


def test_a_trial_that_misses_its_constraint_wins_nothing(images_root, tmp_path):
    constraint = {"search__constraints": ["id_val/acc >= 85"]}
    a = compared(images_root, tmp_path / "a", [(85.0, 62.0)], **constraint)
    b = compared(images_root, tmp_path / "b", [(65.0, 99.0)], **constraint)
    assert said(a, b) == "Only a has a trial that meets the constraints."
    c = compared(images_root, tmp_path / "c", [(65.0, 99.0)], **constraint)
    assert said(b, c) == "None of these searches has a trial that meets the constraints."


def test_of_several_objectives_all_count(images_root, tmp_path):
    both = {"search__objective": [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]}
    a = compared(images_root, tmp_path / "a", [(85.0, 30.0)], **both)
    b = compared(images_root, tmp_path / "b", [(84.9, 60.0)], **both)
    shown = "id_val/acc 85 to 84.9 and ood_val/mean_acc 30 to 60, on validation data."
    assert said(a, b).startswith(f"Neither of a and b is ahead in all objectives: {shown}")
    c = compared(images_root, tmp_path / "c", [(85.0, 60.0)], **both)
    assert said(b, c).startswith("c is ahead of b by id_val/acc 85 to 84.9 and ood_val/mean_acc 60")
