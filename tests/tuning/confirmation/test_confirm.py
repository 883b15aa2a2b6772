"""Confirmations: who is chosen, what is stored, and one on a real local Ray, small."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from mlflow.tracking import MlflowClient
from rich.console import Console

from tests.trainers.curves import changed
from tests.tuning import fakes
from tests.tuning.databases import with_database
from tests.tuning.result_tables import notes
from tests.tuning.run_folders import LR, WEIGHT, search_file, swap_classes, write_run
from tests.tuning.run_folders import trial as searched
from tests.tuning.selection.test_beliefs import lucky_trials
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run, measure_end
from trainers.loop.state import load_split
from trainers.ray_trainer import train_loop
from tuning.config.objectives import Objective, parse_constraint
from tuning.config.schema import ResourcesConfig
from tuning.confirmation.configurations import chosen, read_confirmation
from tuning.confirmation.confirm import _check_test_splits, _models, confirm, fresh_seeds
from tuning.confirmation.report import confirmation_table
from tuning.confirmation.results import (
    COSTS,
    FT,
    Configuration,
    ResultsFile,
    TestResult,
    read_results,
    results_path,
    write_results_table,
)
from tuning.execution.ray_session import ray_session
from tuning.execution.retries import fit
from tuning.runs.run_folder import load_run
from tuning.views.mlflow.callback import MlflowCallback
from tuning.views.mlflow.client import default_tracking_uri

STEPS = 3


def result(trial_id, seed, acc):
    metrics = {"id_test/acc": acc, "ood_test/mean_acc": acc - 20}
    metrics |= {f"ood_test/{domain}/acc": acc - 20 for domain in fakes.DOMAINS}
    kind = "reference" if trial_id == "ft" else "trial"
    return TestResult(trial_id, kind, seed, {"optim.lr": 1e-5}, ("objective #1",), metrics)


def test_each_chosen_trial_is_confirmed_once(tmp_path):
    search = fakes.search_record(tmp_path, objectives=(Objective("id_val/acc"),))
    records = [
        fakes.reference(),
        fakes.trial(0, 85.0, 62.0),
        fakes.trial(1, 80.0, 66.0),
        fakes.trial(2, 99.0, 99.0, outcome="pruned"),
        fakes.trial(3, 84.0, 60.0),
    ]
    found = {one.trial_id: one for one in chosen(search, records, top=2)}
    assert list(found) == ["trial-000", "trial-003", "trial-001"]
    assert found["trial-000"].labels == ("objective #1", "id_val")
    assert found["trial-003"].labels == ("objective #2",)
    assert found["trial-001"].labels == ("ood_val", "leave_one_domain_out", "worst_domain")
    assert not found["trial-000"].looks_at_ood
    assert found["trial-001"].looks_at_ood


def test_the_expected_best_is_confirmed(tmp_path):
    search = fakes.search_record(tmp_path)
    labels = [label for one in chosen(search, lucky_trials(), top=3) for label in one.labels]
    assert labels.count("expected") == 1
    (only,) = chosen(search, lucky_trials(), rules=["expected"])
    assert (only.labels, only.looks_at_ood) == (("expected",), True)


def test_the_announced_reference_is_labelled_as_not_tuned(tmp_path):
    search = fakes.search_record(tmp_path)
    best = Configuration("trial-007", {}, ("objective #1", "id_val"))
    text = _models(search, [Configuration(FT, {}, method=FT), best])
    label = "FT, not tuned (lr = 1e-05)"
    assert text == f"zero-shot, {label}, trial-007 (objective #1, id_val)"


def test_trials_that_miss_the_constraints_are_marked(tmp_path):
    constraint = parse_constraint("id_val/acc >= 82", ["id_val/acc"])
    search = fakes.search_record(tmp_path, constraints=(constraint,))
    one_meets = [fakes.trial(0, 85.0, 62.0), fakes.trial(1, 80.0, 70.0)]
    found = chosen(search, one_meets, top=2, rules=("objective",))
    assert [(one.trial_id, one.misses) for one in found] == [
        ("trial-000", False),
        ("trial-001", True),
    ]


def test_the_pareto_front_is_confirmed_on_request_only(tmp_path):
    search = fakes.search_record(tmp_path)
    records = [fakes.trial(i, 80.0 + i, 66.0 - i) for i in range(4)]
    assert len(chosen(search, records)) < 4
    assert [one.labels for one in chosen(search, records, rules=["pareto"])] == [("pareto",)] * 4
    (only,) = chosen(search, records, rules=["id_val"])
    assert (only.trial_id, only.labels) == ("trial-003", ("id_val",))


def test_the_best_of_each_method_is_confirmed_under_its_name(tmp_path):
    search, records = fakes.search_record(tmp_path), fakes.compared_methods()
    found = {one.trial_id: one for one in chosen(search, records)}
    assert list(found)[:4] == ["trial-007", "trial-006", "trial-005", "trial-004"]
    best = found["trial-007"]
    assert best.labels[:2] == ("objective #1", "by_method/carot")
    assert (best.method, best.best_of_method, best.params["method.name"]) == (
        "carot",
        True,
        "carot",
    )
    only = chosen(search, records, rules=["by_method"])
    assert [one.labels for one in only] == [
        ("by_method/carot",), ("by_method/lipsum_ft",), ("by_method/kd",), ("by_method/ft",),
    ]  # fmt: skip
    (other,) = chosen(search, records, rules=["id_val"])
    assert (other.trial_id, other.method, other.best_of_method) == ("trial-004", "ft", False)


@pytest.mark.parametrize(
    ("records", "arguments", "key"),
    [
        ([fakes.reference(), fakes.trial(0, outcome="pruned")], {}, None),
        ([fakes.trial(0)], {"rules": ["paretto"]}, "--rule"),
        ([fakes.trial(0)], {"rules": ["by_method"]}, "--rule"),
        ([fakes.trial(0)], {"rules": ["expected"]}, "--rule"),
        ([fakes.trial(0)], {"top": 0}, "--top"),
        ([fakes.trial(0)], {"top": 5, "rules": ["id_val"]}, "--top"),
    ],
)
def test_a_choice_that_is_not_possible_is_refused(records, arguments, key, tmp_path):
    with pytest.raises(ConfigError) as error:
        chosen(fakes.search_record(tmp_path), records, **arguments)
    assert error.value.key == key


def test_each_rule_without_a_trial_is_named_with_its_reason(tmp_path):
    search = fakes.search_record(tmp_path, ood_domains=())
    with pytest.raises(ConfigError) as error:
        chosen(search, [fakes.trial(0)], rules=["expected", "by_method", "ood_val"])
    assert error.value.value == "expected, by_method, ood_val"
    expected, by_method, ood_val = error.value.problem.split("; ")
    assert "expected: it needs" in expected
    assert "8 finished trials" in expected
    assert by_method == "by_method: all trials of this search have the same method"
    assert ood_val == "ood_val: the search has no OOD domain"


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(ConfigError) as error:
        confirm(tmp_path, seeds=1)
    assert error.value.key == "--seeds"


def test_fresh_seeds_are_none_that_a_trial_used():
    used = fakes.trial(0, params={"seed": 1001})
    assert fresh_seeds(0, [fakes.trial(1), used], 3) == (1000, 1002, 1003)
    assert fresh_seeds(7, [], 2) == (1007, 1008)


def test_results_are_kept_and_an_incomplete_line_is_cut_off(tmp_path):
    first, second = result("ft", 1000, 70.0), result("trial-000", 1000, 72.0)
    with closing(ResultsFile(tmp_path)) as file:
        file.append(first)
        with pytest.raises(ConfigError, match="another process is confirming"):
            ResultsFile(tmp_path)
    with results_path(tmp_path).open("a") as file_of_a_killed_process:
        file_of_a_killed_process.write('{"trial_id": "trial-0')
    assert list(read_results(tmp_path).values()) == [first]
    with closing(ResultsFile(tmp_path)) as file:
        file.append(second)
    assert read_results(tmp_path) == {("ft", 1000): first, ("trial-000", 1000): second}
    results_path(tmp_path).write_text("nonsense\n" + results_path(tmp_path).read_text())
    with pytest.raises(ConfigError, match="line 1"):
        read_results(tmp_path)


@pytest.mark.parametrize("change", [{"metrics": None}, {"params": 3}, {"seed": "x"}, {"labels": 1}])
def test_a_result_of_another_type_is_damage(tmp_path, change):
    ResultsFile(tmp_path).append(result("trial-000", 1000, 70.0))
    path = results_path(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(ConfigError, match="line 1 cannot be read"):
        read_results(tmp_path)


def test_a_confirmation_is_read_back_with_all_seeds_and_labels(tmp_path):
    search, records = fakes.search_record(tmp_path), fakes.compared_methods()
    assert read_confirmation(search, records) is None
    wanted = chosen(search, records, rules=["id_val", "ood_val"])
    with closing(ResultsFile(tmp_path)) as file:
        for seed in (1001, 1000):
            for one in wanted:
                file.append(replace(result(one.trial_id, seed, 70.0), labels=one.labels))
        again = replace(result("trial-007", 1002, 70.0), labels=("by_method/carot",))
        file.append(again)
        # Chosen before the search was extended.
        file.append(replace(result("trial-000", 1002, 60.0), labels=("id_val",)))
    found = read_confirmation(search, records)
    assert found is not None
    assert found.seeds == (1000, 1001, 1002)
    configurations = {one.trial_id: one for one in found.configurations}
    assert list(configurations) == ["ft", "trial-007", "trial-004", "trial-000"]
    by_ood, by_id, earlier = list(configurations.values())[1:]
    assert set(by_id.labels) == {"id_val", "by_method/ft"}
    assert (by_id.method, by_id.looks_at_ood, by_id.best_of_method) == ("ft", True, True)
    assert set(by_ood.labels) == {"ood_val", "by_method/carot"}
    assert (by_ood.method, by_ood.looks_at_ood, by_ood.best_of_method) == ("carot", True, True)
    assert (earlier.labels, earlier.looks_at_ood) == (("id_val",), False)
    assert not earlier.best_of_method
    assert found.values("trial-007", "id_test/acc") == {1000: 70.0, 1001: 70.0, 1002: 70.0}


def test_parameters_of_mixed_types_share_a_column(tmp_path):
    ResultsFile(tmp_path).close()
    results = [
        replace(result("trial-000", 1000, 70.0), params={"choice": 1}),
        replace(result("trial-001", 1000, 70.0), params={"choice": "one"}),
        replace(result("ft", 1000, 70.0), params={}),
    ]
    rows = pq.read_table(write_results_table(tmp_path, results)).to_pylist()
    assert [row["choice"] for row in rows] == ["1", "one", None]


def run_folder(root, folder):
    """A finished search of two trials, one of which diverges if it is trained again."""
    file = search_file(
        root,
        trial__method={"name": "lipsum_ft", "text_count": 16},
        trial__optim__lr=1e-3,
        trial__eval={"every": STEPS, "line": "auto"},
        trial__steps=STEPS,
        trial__seed=3,
        search__resources__workers=1,
    )
    reports = fakes.report(STEPS, 70.0, 50.0), fakes.report(STEPS, 75.0, 35.0)
    records = [
        fakes.trial(number, params={WEIGHT: 0.5, LR: (1e-3, 1e3)[number]}, curve=(report,))
        for number, report in enumerate(reports)
    ]
    return write_run(folder, file, records, zero_shot=fakes.report(0, 60.0, 40.0))


def test_changed_or_incomplete_data_are_refused_at_once(whole_root, tmp_path):
    root = Path(shutil.copytree(whole_root, tmp_path / "copy"))
    folder = write_run(tmp_path / "run", search_file(root), [searched(0, 85.0, 62.0)])
    swap_classes(root, "real", "train")
    with pytest.raises(ConfigError, match="'real/train' changed since this search began"):
        confirm(folder, console=Console(quiet=True))
    shutil.rmtree(root / "clipart" / "val")
    with pytest.raises(ConfigError, match="clipart: it has no split 'val'"):
        confirm(folder, console=Console(quiet=True))
    assert not results_path(folder).exists()
    assert not ray.is_initialized()


def test_results_of_two_test_splits_are_not_mixed(whole_root, tmp_path):
    data = search_file(Path(shutil.copytree(whole_root, tmp_path / "copy"))).trial.data
    (tmp_path / "confirm").mkdir()
    _check_test_splits(tmp_path, data, has_results=False)
    _check_test_splits(tmp_path, data, has_results=True)
    swap_classes(tmp_path / "copy", "sketch", "test")
    with pytest.raises(ConfigError, match="the test split of 'sketch' changed since"):
        _check_test_splits(tmp_path, data, has_results=True)
    _check_test_splits(tmp_path, data, has_results=False)  # nothing was measured yet
    _check_test_splits(tmp_path, data, has_results=True)


@pytest.fixture(scope="module")
def confirmed(whole_root, ray_head, tmp_path_factory):
    folder = run_folder(whole_root, with_database(tmp_path_factory.mktemp("runs")) / "small")
    callback = MlflowCallback(default_tracking_uri(folder.parent), "lipsum-tune")
    callback.search_started(load_run(folder).search)
    callback.search_ended(load_run(folder).history.records, "finished")
    with ray_session(ray_head.address):
        return folder, confirm(folder, seeds=2, console=Console(quiet=True))


@pytest.mark.ray
def test_all_are_trained_with_the_same_seeds_and_tested(confirmed):
    folder, found = confirmed
    assert found.seeds == (1003, 1004)
    assert found.results.keys() == {
        ("zero-shot", None), ("ft", 1003), ("ft", 1004), ("trial-000", 1003), ("trial-000", 1004),
    }  # fmt: skip
    file = load_run(folder).file
    params = {"method.reg_weight": 0.5, "optim.lr": 1e-3}
    trial = file.trial_config(params).model_copy(update={"seed": 1004})
    measured = dict(found.results["trial-000", 1004].metrics)
    costs = {name: measured.pop(name) for name in COSTS}
    *_, last = fine_tune(trial)
    # The point of the line is chosen here without a test split.
    kept = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc", "line/a")
    validated = {name: last.metrics[name] for name in kept}
    images = load_split(trial, "test")
    tested = evaluate_run(last.run, "test", images)
    tested |= measure_end(last.run, "test", images, validated["line/a"])
    assert measured == pytest.approx(tested | validated)
    table = confirmation_table(found)
    names = [str(row.values["name"]) for row in table.rows]
    assert names.count("  at the end of its training") == 2
    assert costs["cost/seconds"] > 0
    assert costs["cost/cpu_seconds"] > 0
    metric = "ood_test/mean_acc"
    ours, its = found.values("trial-000", metric), found.values("ft", metric)
    gap = found.against("ft", "trial-000", metric)
    assert gap is not None
    assert gap.mean == pytest.approx(sum(ours[s] - its[s] for s in found.seeds) / 2)
    kept = [path.name for path in (folder / "confirm" / "train").glob("trial-000*")]
    assert kept == []


@pytest.mark.ray
def test_a_failed_job_is_named_and_the_others_go_on(confirmed):
    _, found = confirmed
    assert [c.trial_id for c in found.configurations] == ["ft", "trial-000", "trial-001"]
    assert found.failed.keys() == {("trial-001", 1003), ("trial-001", 1004)}
    assert "TrainingDiverged: the training loss is not" in found.failed["trial-001", 1003]
    assert found.estimate("trial-001", "id_test/acc") is None
    assert "TrainingDiverged" in notes(confirmation_table(found))


@pytest.mark.ray
def test_results_are_not_measured_again(confirmed):
    folder, found = confirmed
    before = results_path(folder).read_bytes()
    assert not ray.is_initialized()
    left = folder / "confirm" / "train" / "ft-seed-1003"  # by a kill behind the line of its result
    (left / "checkpoint_1").mkdir(parents=True)
    again = confirm(folder, seeds=2, rules=["objective"], console=Console(quiet=True))
    assert not ray.is_initialized()
    assert results_path(folder).read_bytes() == before
    assert again.results == found.results
    assert not left.exists()
    rows = pq.read_table(folder / "confirm" / "results.parquet").to_pylist()
    assert [(row["trial_id"], row["seed"]) for row in rows] == list(found.results)
    assert rows[-1]["id_test/acc"] == json.loads(before.splitlines()[-1])["metrics"]["id_test/acc"]


@pytest.mark.ray
def test_mlflow_has_one_run_per_configuration(confirmed, tmp_path):
    folder, found = confirmed
    client = MlflowClient(default_tracking_uri(folder.parent))
    (experiment,) = [e for e in client.search_experiments() if e.name == "lipsum-tune"]
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'confirm'")
    by_trial = {run.data.tags["confirms"]: run for run in runs}
    assert len(runs) == len(by_trial) == 2
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'search'")
    page = client.download_artifacts(parent.info.run_id, "index.html", str(tmp_path))
    assert "Confirmed on fresh seeds" in Path(page).read_text("utf-8")
    for trial_id, run in by_trial.items():
        mean = found.estimate(trial_id, "id_test/acc")
        assert mean is not None
        assert run.data.metrics["id_test/acc"] == pytest.approx(mean.mean)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
    assert by_trial["trial-000"].data.params["method.reg_weight"] == "0.5"
    assert by_trial["trial-000"].data.metrics["cost/seconds"] > 0
    methods = {trial_id: run.data.tags["method"] for trial_id, run in by_trial.items()}
    assert methods == {"ft": "ft", "trial-000": "lipsum_ft"}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_two_workers_and_a_resumed_job_read_the_test_splits(trial, whole_root, tmp_path):
    config = changed(trial, data__root=str(whole_root), steps=STEPS)

    def twice(values):
        return [train_loop(values) for _ in range(2)]

    with ray_session():
        first, again = fit(
            config.model_dump_json(),
            name="two",
            storage_path=str(tmp_path),
            resources=ResourcesConfig(workers=2),
            final_split="test",
            loop=twice,
        )
    assert "train/loss" in first  # it trained
    timed = {name for name in again if name.startswith(("cost/", "train/images"))}
    assert again.keys() == first.keys()
    assert all(again[n] == first[n] for n in again.keys() - timed)  # its last word, said again
    tested = {name for name in first if name.startswith(("id_test/", "ood_test/"))}
    *_, last = fine_tune(config)  # with neither Ray nor search
    expected = evaluate_run(last.run, "test", load_split(config, "test"))
    assert tested == {name for name in expected if not name.startswith("test/")}
    for name in tested:
        assert again[name] == pytest.approx(first[name])
        if name.endswith("nll"):
            assert first[name] == pytest.approx(expected[name], rel=0.01)
