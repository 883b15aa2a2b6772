"""Real files of a search that never ran: which of them are there after each event."""

from __future__ import annotations

import io
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.tuning.fakes import DOMAINS, reference, report, search_record, trial
from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.data.storage import Store, open_store
from tuning.algorithms.objectives import Objective, parse_constraint
from tuning.checkpoints import files as checkpoint_files
from tuning.checkpoints.files import SNAPSHOT, TRAIN_FOLDER, trial_path
from tuning.checkpoints.retention import CheckpointCallback, kept_trials
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import choices


def _state() -> bytes:
    file = io.BytesIO()
    torch.save({"step": torch.zeros(500)}, file)
    return file.getvalue()


TRAINING_STATE = _state()
STATE_BYTES = len(TRAINING_STATE)


def train(run_folder: Path) -> Store:
    return open_store(run_folder / TRAIN_FOLDER)


def trial_folder(run_folder: Path, trial_id: str) -> Path:
    return run_folder / TRAIN_FOLDER / trial_path(trial_id)


def kept_checkpoint(run_folder: Path, trial_id: str) -> Path | None:
    found = checkpoint_files.kept_checkpoint(train(run_folder), trial_id)
    return None if found is None else found.local_path()


def write_checkpoint(run_folder: Path, trial_id: str, step: int = 240, second: int = 0) -> Path:
    """What Ray Train leaves of a trial: weights of 1 kB, its state, and its own snapshot."""
    folder = trial_folder(run_folder, trial_id)
    checkpoint = folder / f"checkpoint_2030-01-01_10-00-{second:02d}.000000"
    checkpoint.mkdir(parents=True)
    metadata = {"progress": json.dumps({"step": step})}
    save_file({"head": np.zeros(250, np.float32)}, checkpoint / WEIGHTS, metadata)
    (checkpoint / STATE).write_bytes(TRAINING_STATE)
    (folder / SNAPSHOT).write_text("{}")
    return checkpoint


def on_disk(run_folder: Path) -> set[str]:
    return {path.name.removeprefix("train-") for path in (run_folder / "train").iterdir()}


def with_state(run_folder: Path) -> set[str]:
    states = (run_folder / "train").glob(f"*/*/{STATE}")
    return {path.parent.parent.name.removeprefix("train-") for path in states}


def num_bytes(run_folder: Path) -> int:
    return sum(p.stat().st_size for p in (run_folder / "train").rglob("*") if p.is_file())


def started(
    search: SearchRecord,
    disk_bytes: int | None = None,
    earlier: Iterable[TrialRecord] = (),
    keep_top: int = 0,
) -> CheckpointCallback:
    callback = CheckpointCallback(train(search.run_folder), disk_bytes, earlier, keep_top)
    callback.search_started(search)
    return callback


def run(callback: CheckpointCallback, search: SearchRecord, record: TrialRecord) -> None:
    """A whole trial: it starts, reports, and ends as the record says."""
    running = replace(record, outcome="running", ended_at=None)
    callback.trial_started(running)
    write_checkpoint(search.run_folder, record.trial_id)
    callback.trial_reported(running)
    assert record.trial_id in with_state(search.run_folder)
    callback.trial_ended(record)


def constrained(run_folder: Path, *lines: str) -> SearchRecord:
    known = report(0, 0, 0)
    constraints = tuple(parse_constraint(line, known) for line in lines)
    objectives = (Objective("ood_val/mean_acc"),)
    return search_record(run_folder, objectives=objectives, constraints=constraints)


def measured(number: int, id_acc: float, ood_acc: float, **extra: float) -> TrialRecord:
    return trial(number, curve=(report(240, id_acc, ood_acc, **extra),))


def random_trials(number: int, seed: int = 0, grid: float = 0.1) -> list[TrialRecord]:
    """Finished trials with a trade-off between both accuracies, and many ties."""
    rng = random.Random(seed)
    found = []
    for index in range(number):
        pull = rng.random()
        id_acc = grid * round((84 + 3 * pull + rng.gauss(0, 0.5)) / grid)
        accs = [grid * round((64 - 4 * pull + rng.gauss(0, 1)) / grid) for _ in DOMAINS]
        domains = {f"ood_val/{d}/acc": acc for d, acc in zip(DOMAINS, accs, strict=True)}
        loss = {"train/loss": 1 - 0.3 * pull + rng.gauss(0, 0.1)}
        found.append(measured(index, id_acc, sum(accs) / len(accs), **domains, **loss))
    return found


def chosen_by_any(search: SearchRecord, records: Sequence[TrialRecord]) -> set[str]:
    return {r.trial_id for choice in choices(search, records) for r in choice.trials}


def test_each_outcome_has_its_fate(tmp_path: Path) -> None:
    search = search_record(tmp_path)
    callback = started(search)
    run(callback, search, reference())
    run(callback, search, trial(0, outcome="pruned"))
    run(callback, search, trial(1, outcome="failed"))
    run(callback, search, trial(2, outcome="stopped"))
    run(callback, search, trial(3, 86.0, 60.0))
    write_checkpoint(tmp_path, "trial-004")
    callback.trial_started(trial(4, outcome="running"))
    assert on_disk(tmp_path) == {"ft", "trial-002", "trial-003", "trial-004"}
    assert with_state(tmp_path) == {"trial-002", "trial-004"}
    run(callback, search, trial(5, 87.0, 61.0))  # better than trial-003
    run(callback, search, trial(6, 85.0, 61.0))  # worse
    assert on_disk(tmp_path) == {"ft", "trial-002", "trial-004", "trial-005"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("id_val/acc >= 85.5",),
        ("id_val/acc >= best - 0.5",),
        ("id_val/acc >= best - 0.5", "train/loss <= 0.9"),
        ("id_val/acc >= best - 1", "train/loss <= best + 0.2", "ood_val/mean_acc >= 60"),
    ],
)
def test_at_any_time_the_weights_of_all_that_a_rule_chooses_are_there(
    tmp_path: Path, lines: Sequence[str], seed: int
) -> None:
    search = constrained(tmp_path, *lines)
    callback = started(search)
    ended: list[TrialRecord] = []
    for record in random_trials(60, seed):
        ended.append(record)
        run(callback, search, record)
        assert on_disk(tmp_path) >= chosen_by_any(search, ended)
        if not any("best" in line for line in lines):
            assert on_disk(tmp_path) == chosen_by_any(search, ended)
    assert len(on_disk(tmp_path)) <= 20


@pytest.mark.parametrize("seed", range(10))
def test_under_a_bound_on_the_best_all_that_may_be_chosen_yet_stay_and_no_others(
    tmp_path: Path, seed: int
) -> None:
    search = constrained(tmp_path, "id_val/acc >= best - 0.5")
    trials = random_trials(40, seed, grid=1e-6)
    best = max(record.metrics["id_val/acc"] for record in trials)
    expected = set()
    for id_acc in [best, *(record.metrics["id_val/acc"] + 0.5 for record in trials)]:
        if id_acc >= best:  # a trial to come that raises the bound, and is bad otherwise
            expected |= chosen_by_any(search, [*trials, trial(99, id_acc, 0.0)])
    expected -= {"trial-099"}
    assert {record.trial_id for record in kept_trials(search, trials)} >= expected
    # And the holder of the best, on which the bound rests.
    holder = max(trials, key=lambda record: record.metrics["id_val/acc"])
    assert {r.trial_id for r in kept_trials(search, trials)} <= {*expected, holder.trial_id}


def test_keeping_one_by_one_is_keeping_of_all_at_once(tmp_path: Path) -> None:
    search = constrained(tmp_path, "id_val/acc >= best - 0.5", "train/loss <= best + 0.1")
    trials = [*random_trials(80), reference()]
    random.Random(1).shuffle(trials)
    kept: tuple[TrialRecord, ...] = ()
    for record in trials:
        kept = kept_trials(search, (*kept, record))
    assert kept == kept_trials(search, trials)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("id_val/acc >= best - 0.5",),
        ("id_val/acc >= best - 0.5", "train/loss <= best + 0.1", "ood_val/mean_acc >= 62"),
    ],
)
def test_the_best_trial_of_each_method_keeps_its_weights_whatever_the_others_reach(
    tmp_path: Path, lines: Sequence[str], seed: int
) -> None:
    search = constrained(tmp_path, *lines)
    names = random.Random(seed).choices(["ft", "kd", "lipsum_ft"], k=60)
    trials = [
        replace(record, params={"method.name": name})
        for record, name in zip(random_trials(60, seed), names, strict=True)
    ]
    kept: tuple[TrialRecord, ...] = ()
    for number, record in enumerate(trials, 1):
        kept = kept_trials(search, (*kept, record))
        ended = trials[:number]
        for name in {*names[:number]}:
            own = [r for r in ended if r.params["method.name"] == name]
            bests = search.bests(ended)
            missed = {
                r.trial_id: sum(max(0, v) for v in search.violations(r, bests).values())
                for r in own
            }
            best = min(own, key=lambda r: (missed[r.trial_id], -search.score(r), r.number))
            assert best in kept
    at_once = kept_trials(search, trials)
    assert {record.trial_id for record in kept} == {record.trial_id for record in at_once}
    assert len(kept) <= 20


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("id_val/acc >= 85.5",),
        ("id_val/acc >= best - 0.5",),
        ("id_val/acc >= best - 1", "train/loss <= best + 0.2", "ood_val/mean_acc >= 60"),
    ],
)
def test_at_any_time_the_weights_of_so_many_best_as_were_asked_for_are_there(
    tmp_path: Path, lines: Sequence[str], seed: int
) -> None:
    search = constrained(tmp_path, *lines)
    callback = started(search, keep_top=4)
    trials, kept = random_trials(30, seed), tuple[TrialRecord, ...]()
    for number, record in enumerate(trials, 1):
        run(callback, search, record)
        ended = trials[:number]
        bests = search.bests(ended)
        order = {
            r.trial_id: (
                sum(max(0, v) for v in search.violations(r, bests).values()),
                -search.score(r),
                r.number,
            )
            for r in ended
        }
        best = {*sorted(order, key=lambda name: order[name])[:4]}
        assert on_disk(tmp_path) >= best | chosen_by_any(search, ended)
        kept = kept_trials(search, (*kept, record), 4)
    at_once = kept_trials(search, trials, 4)
    assert {r.trial_id for r in at_once} == {r.trial_id for r in kept} == on_disk(tmp_path)
    assert len(kept) <= 25


def test_the_best_that_were_asked_for_outlast_what_other_rules_choose(tmp_path: Path) -> None:
    search = search_record(tmp_path)
    trials = [
        reference(),
        measured(0, 86.0, 66.0),  # by the objective
        measured(1, 85.9, 65.9),  # second, and in no way the best
        measured(2, 90.0, 50.0),  # by ID accuracy
    ]
    order = [record.trial_id for record in kept_trials(search, trials, keep_top=2)]
    assert order == ["trial-000", "ft", "trial-001", "trial-002"]
    assert [r.trial_id for r in kept_trials(search, trials)] == ["trial-000", "ft", "trial-002"]


def test_a_trial_that_sets_a_bound_counts_though_it_is_not_chosen(tmp_path: Path) -> None:
    search = constrained(tmp_path, "train/loss <= best + 0.1", "id_val/acc >= 85")
    holder = measured(0, 80.0, 60.0, **{"train/loss": 0.5})
    callback = started(search)
    for record in (
        holder,
        measured(1, 86.0, 62.0, **{"train/loss": 0.58}),
        measured(2, 87.0, 63.0, **{"train/loss": 0.65}),  # too much beside 0.5, not beside 0.58
    ):
        run(callback, search, record)
    assert on_disk(tmp_path) == {"trial-000", "trial-001"}


def test_a_resume_cleans_up_and_touches_nothing_that_may_run_again(tmp_path: Path) -> None:
    search = search_record(tmp_path)
    earlier = [
        reference(),
        trial(0, 80.0, 60.0),
        trial(1, 86.0, 62.0),
        trial(2, outcome="pruned"),
        trial(3, outcome="failed"),
        trial(4, outcome="stopped"),
    ]
    for record in earlier:
        write_checkpoint(tmp_path, record.trial_id)
    (weights,) = trial_folder(tmp_path, "trial-003").glob(f"*/{WEIGHTS}")
    weights.unlink()  # a driver was killed while it removed the trial
    callback = started(search, earlier=earlier)
    assert on_disk(tmp_path) == {"ft", "trial-001", "trial-004"}
    assert with_state(tmp_path) == {"trial-004"}
    callback.trial_ended(earlier[1])  # told again
    run(callback, search, trial(5, 87.0, 63.0))
    assert on_disk(tmp_path) == {"ft", "trial-005", "trial-004"}


def test_a_search_that_has_no_folder_yet_is_fine(tmp_path: Path) -> None:
    callback = started(search_record(tmp_path), disk_bytes=1)
    callback.search_ended([], "finished")
    assert kept_checkpoint(tmp_path, "trial-000") is None


def test_a_folder_that_comes_back_goes_again_at_the_next_event(tmp_path: Path) -> None:
    search = search_record(tmp_path)
    callback = started(search)
    run(callback, search, trial(0, outcome="pruned"))
    folder = trial_folder(tmp_path, "trial-000")
    for event in (
        lambda: callback.trial_started(trial(1, outcome="running")),
        lambda: callback.trial_reported(trial(1, outcome="running")),
        lambda: callback.search_ended([], "finished"),
    ):
        folder.mkdir()
        (folder / SNAPSHOT).write_text("{}")
        event()
        assert not folder.exists()


def test_one_folder_that_cannot_be_removed_keeps_no_other_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [trial(number, outcome="pruned") for number in range(3)]
    stuck = records[0].trial_id
    for record in records:
        checkpoint = write_checkpoint(tmp_path, record.trial_id)
        if record.trial_id == stuck:
            (checkpoint / WEIGHTS).unlink()
            (checkpoint / WEIGHTS).mkdir()  # permissions do not stop root
    callback = started(search_record(tmp_path), earlier=records)
    callback.trial_started(trial(3, outcome="running"))
    assert on_disk(tmp_path) == {stuck}
    assert len(caplog.records) == 1
    assert f"train-{stuck}: cannot be removed yet" in caplog.text


def test_the_budget_gives_up_the_least_important_first_and_what_runs_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    search = constrained(tmp_path, "train/loss <= best + 0.1")
    finished = [
        reference(),
        measured(0, 86.0, 64.0, **{"train/loss": 0.45}),  # by the objective
        measured(1, 86.2, 63.0, **{"train/loss": 0.45}),  # on the Pareto front
        measured(2, 86.3, 62.0, **{"train/loss": 0.45}),  # by ID accuracy
        measured(3, 85.0, 61.0, **{"train/loss": 0.40}),  # if losses had to be lower
    ]
    for record in finished:
        write_checkpoint(tmp_path, record.trial_id)
    write_checkpoint(tmp_path, "trial-004")
    started(search, earlier=finished)
    everything = num_bytes(tmp_path)
    each = (everything - STATE_BYTES) // 6
    order = ["trial-003", "trial-001", "trial-002", "ft", "trial-000"]
    with_budget = [everything, *(everything - each * n + each // 2 for n in range(1, 6))]
    present = {*order, "trial-004"}
    for num_given_up, disk_bytes in enumerate(with_budget):
        caplog.clear()
        callback = started(search, disk_bytes, finished)
        callback.trial_reported(trial(4, outcome="running"))
        assert on_disk(tmp_path) == present - set(order[:num_given_up])
        assert num_bytes(tmp_path) <= disk_bytes
        named = [name for name in order if name in caplog.text]
        assert named == order[max(0, num_given_up - 1) : num_given_up]


def test_running_trials_that_exceed_the_budget_are_kept_and_one_warning_says_what_they_need(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        state = write_checkpoint(tmp_path, f"trial-{number:03d}") / STATE
        with state.open("ab") as file:
            file.truncate(150_000_000)  # takes no disk
    callback = started(search_record(tmp_path), disk_bytes=2 * 10**8)
    for _ in range(3):
        callback.trial_reported(trial(0, outcome="running"))
    assert with_state(tmp_path) == {"trial-000", "trial-001", "trial-002"}
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "hold checkpoints of 0.45 GB" in warning.getMessage()
    assert "disk_gb = 0.2: set it to at least 1 (two checkpoints" in warning.getMessage()


def test_the_newest_checkpoint_is_the_one_of_most_steps_that_is_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "trial-000", step=40, second=1)
    newest = write_checkpoint(tmp_path, "trial-000", step=80, second=2)
    torn = write_checkpoint(tmp_path, "trial-000", step=120, second=3)
    content = (torn / WEIGHTS).read_bytes()
    (torn / WEIGHTS).write_bytes(content[:-1])
    assert kept_checkpoint(tmp_path, "trial-000") == newest
    again = write_checkpoint(tmp_path, "trial-000", step=80, second=4)
    assert kept_checkpoint(tmp_path, "trial-000") == again
    assert kept_checkpoint(tmp_path, "trial-001") is None


def test_of_a_finished_trial_only_the_newest_weights_stay(tmp_path: Path) -> None:
    search = search_record(tmp_path)
    write_checkpoint(tmp_path, "trial-000", step=200, second=1)
    newest = write_checkpoint(tmp_path, "trial-000", step=240, second=2)
    started(search, earlier=[trial(0)])
    assert kept_checkpoint(tmp_path, "trial-000") == newest
    assert sorted(p.name for p in newest.parent.iterdir()) == sorted([newest.name, SNAPSHOT])
    assert [p.name for p in newest.iterdir()] == [WEIGHTS]


def test_a_trial_that_starts_again_is_left_alone(tmp_path: Path) -> None:
    search = search_record(tmp_path)
    callback = started(search, earlier=[trial(0, outcome="failed")])
    callback.trial_started(trial(0, outcome="running"))
    write_checkpoint(tmp_path, "trial-000")
    callback.trial_reported(trial(0, outcome="running"))
    assert with_state(tmp_path) == {"trial-000"}
