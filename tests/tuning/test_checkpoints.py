"""Files of a search that never ran: which of them exist after each event."""

import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.tuning import fakes
from tests.tuning.fakes import DOMAINS, reference, report, trial
from trainers.checkpoints.format import STATE, WEIGHTS, Header, Progress, save_checkpoint
from trainers.data.store import open_store
from tuning.checkpoints import KeptWeights, kept_trials
from tuning.config.objectives import Objective, parse_constraint
from tuning.config.schema import CheckpointsConfig
from tuning.log.paths import TRAIN_FOLDER, trial_path
from tuning.log.records import TrialRecord
from tuning.results.ranking import best_trial, pareto_front
from tuning.results.rules import best_by_method, choices

RUNNING = trial(9, outcome="running")
LINES = [(), ("id_val/acc >= 85.5",), ("id_val/acc >= 85", "train/loss <= 0.9")]
"""Constraints with fixed bounds."""
RELATIVE_LINES = [
    ("id_val/acc >= best - 0.5",),
    ("id_val/acc >= best - 1", "train/loss <= best + 0.2", "ood_val/mean_acc >= 60"),
    ("train/loss <= best + 0.05",),
]
"""Constraints with bounds that tighten whenever a trial has a better value."""


def trial_folder(run_folder, trial_id):
    return run_folder / TRAIN_FOLDER / trial_path(trial_id)


def write_checkpoint(run_folder, trial_id, step=240):
    """A checkpoint of a trial, with weights of 1 kB."""
    checkpoint = trial_folder(run_folder, trial_id) / f"checkpoint_{step:03d}"
    weights, training = {"head": torch.zeros(250)}, {"step": torch.zeros(500)}
    save_checkpoint(checkpoint, weights, training, Header(Progress(step), ("ant",)))
    return checkpoint


def on_disk(run_folder):
    return {path.name.removeprefix("train-") for path in (run_folder / "train").iterdir()}


def with_state(run_folder):
    states = (run_folder / "train").glob(f"*/*/{STATE}")
    return {path.parent.parent.name.removeprefix("train-") for path in states}


class Search:
    """The records of a search that never ran, and its weights."""

    def __init__(self, search, earlier=(), **limits):
        self.search, self.records = search, {r.trial_id: r for r in earlier}
        self.folder = search.folder
        limits = CheckpointsConfig(**{"keep_top": 0, **limits})
        self.weights = KeptWeights(open_store(self.folder / TRAIN_FOLDER), limits)
        self.write()

    def write(self, *records, is_over=False):
        self.records |= {record.trial_id: record for record in records}
        self.weights.update(self.search.run(self.records.values(), is_live=not is_over))

    def run(self, record):
        running = replace(record, outcome="running", ended_at=None)
        write_checkpoint(self.folder, record.trial_id)
        self.write(running)
        assert record.trial_id in with_state(self.folder)
        self.write(record)


def constrained(run_folder, *lines):
    known = report(0, 0, 0)
    constraints = tuple(parse_constraint(line, known) for line in lines)
    objectives = (Objective("ood_val/mean_acc"),)
    return fakes.Search(run_folder, objectives=objectives, constraints=constraints)


def measured(number, id_acc, ood_acc, **extra):
    return trial(number, curve=(report(240, id_acc, ood_acc, **extra),))


def random_trials(number, seed):
    """Finished trials of three methods, with a trade-off between both accuracies and many ties."""
    rng = random.Random(seed)
    found = []
    for index in range(number):
        pull = rng.random()
        id_acc = round(84 + 3 * pull + rng.gauss(0, 0.5), 1)
        accs = [round(64 - 4 * pull + rng.gauss(0, 1), 1) for _ in DOMAINS]
        domains = {f"ood_val/{d}/acc": acc for d, acc in zip(DOMAINS, accs, strict=True)}
        loss = {"train/loss": 1 - 0.3 * pull + rng.gauss(0, 0.1)}
        record = measured(index, id_acc, sum(accs) / len(accs), **domains, **loss)
        found.append(replace(record, params={"method.name": rng.choice(["ft", "kd", "flyp"])}))
    return found


def chosen_by_any(goal, records):
    return {r.trial_id for choice in choices(goal, records) for r in choice.trials}


def ranked_by_hand(goal, records):
    """Best first: by how much they miss the constraints, then by the objective."""
    bests = goal.bests(records)

    def key(record):
        missed = sum(max(0, v) for v in goal.violations(record, bests).values())
        return missed, -record.metrics["ood_val/mean_acc"], record.number

    return sorted(records, key=key)


def test_the_outcome_decides_what_stays(tmp_path):
    search = fakes.Search(tmp_path)
    run = Search(search)
    run.run(reference())
    run.run(trial(0, outcome="pruned"))
    run.run(trial(1, outcome="failed"))
    run.run(trial(2, outcome="stopped"))
    run.run(trial(3, 86.0, 60.0))
    write_checkpoint(tmp_path, "trial-004")
    run.write(trial(4, outcome="running"))
    assert on_disk(tmp_path) == {"ft", "trial-002", "trial-003", "trial-004"}
    assert with_state(tmp_path) == {"trial-002", "trial-004"}
    run.run(trial(5, 87.0, 61.0))  # better than trial-003
    run.run(trial(6, 85.0, 61.0))  # worse
    assert on_disk(tmp_path) == {"ft", "trial-002", "trial-004", "trial-005"}


@pytest.mark.parametrize("keep_top", [0, 4])
@pytest.mark.parametrize("lines", LINES)
def test_choices_and_the_best_have_their_weights(tmp_path, lines, keep_top):
    search = constrained(tmp_path, *lines)
    run = Search(search, keep_top=keep_top)
    trials = random_trials(40, seed=0)
    for number, record in enumerate(trials, 1):
        run.run(record)
        best = {r.trial_id for r in ranked_by_hand(search.goal, trials[:number])[:keep_top]}
        assert on_disk(tmp_path) == best | chosen_by_any(search.goal, trials[:number])
    assert kept_trials(search.goal, trials, keep_top).keys() == on_disk(tmp_path)


@pytest.fixture
def size(tmp_path):
    """Bytes of the weights that `write_checkpoint` writes."""
    checkpoint = write_checkpoint(tmp_path / "other", "trial-000")
    return (checkpoint / WEIGHTS).stat().st_size


@pytest.mark.parametrize("is_given", [True, False])
def test_the_worst_go_first_where_there_is_no_room_for_all(tmp_path, size, is_given, monkeypatch):
    """A limit of ten sets of weights, or half of a disk of twenty that only these fill."""

    def usage(folder):
        return SimpleNamespace(free=20 * size - len(on_disk(tmp_path)) * size)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    search = constrained(tmp_path)
    run = Search(search, keep_top="all", gigabytes=10.5 * size / 1e9 if is_given else None)
    trials = random_trials(30, seed=0)
    in_any_case = set()
    for number, record in enumerate(trials, 1):
        run.run(record)
        in_any_case |= chosen_by_any(search.goal, trials[:number])
        order = [r.trial_id for r in ranked_by_hand(search.goal, trials[:number])]
        kept = on_disk(tmp_path)
        assert len(kept) >= min(number, 9 if is_given else 8)
        assert len(kept) <= 11
        best = {name for name in order if name in kept - in_any_case}
        assert best == set([name for name in order if name not in in_any_case][: len(best)])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lines", RELATIVE_LINES)
def test_a_tightening_bound_chooses_among_the_weights_that_exist(tmp_path, lines, seed):
    search = constrained(tmp_path, *lines)
    run, trials, candidates = Search(search), random_trials(60, seed), set[str]()
    for number, record in enumerate(trials, 1):
        candidates.add(record.trial_id)
        run.run(record)
        ended = [r for r in trials[:number] if r.trial_id in candidates]
        candidates = on_disk(tmp_path)
        assert candidates >= chosen_by_any(search.goal, ended)
        best = ranked_by_hand(search.goal, trials[:number])[0]
        meets = all(v <= 0 for v in search.goal.violations(best, search.goal.bests(ended)).values())
        assert best.trial_id in candidates or not meets
        # The bounds are those of all trials, also of the ones whose weights were removed.
        bests, bests_of_all = search.goal.bests(ended), search.goal.bests(trials[:number])
        assert all(bests[line] == bests_of_all[line] for line in lines if "best" in line)
    assert len(candidates) <= 20


def test_the_best_of_each_method_has_its_weights(tmp_path):
    """A bound within a method moves with the method's own best, far below that of the other."""
    search = constrained(tmp_path, "id_val/acc >= best - 0.5")
    rng, ends = random.Random(0), [("a", 90.0, 50.0), ("b", 80.0, 50.0), ("b", 79.6, 55.0)]
    ends += [("b", 79.2, 65.0), ("b", 80.3, 40.0)]
    ends += [(rng.choice("ab"), rng.gauss(80, 1), rng.gauss(55, 5)) for _ in range(40)]
    run, trials = Search(search), list[TrialRecord]()
    for number, (method, id_acc, ood_acc) in enumerate(ends):
        record = measured(number, id_acc, ood_acc)
        trials.append(replace(record, params={"method.name": method}))
        run.run(trials[-1])
        chosen = {r.trial_id for r in best_by_method(search.goal, trials).values()}
        assert chosen <= on_disk(tmp_path)


def test_a_resume_does_not_touch_what_may_run_again(tmp_path):
    search = fakes.Search(tmp_path)
    outcomes = {2: "pruned", 3: "failed", 4: "stopped", 5: "failed"}
    ended = [trial(number, outcome=outcome) for number, outcome in outcomes.items()]
    earlier = [reference(), trial(0, 80.0, 60.0), trial(1, 86.0, 62.0), *ended]
    for record in earlier:
        write_checkpoint(tmp_path, record.trial_id)
    newest = write_checkpoint(tmp_path, "trial-001", step=250)
    (weights,) = trial_folder(tmp_path, "trial-003").glob(f"*/{WEIGHTS}")
    weights.unlink()  # a driver was killed while it removed the trial
    run = Search(search, earlier)
    assert on_disk(tmp_path) == {"ft", "trial-001", "trial-004"}
    assert with_state(tmp_path) == {"trial-004"}
    assert [p.name for p in newest.parent.iterdir()] == [newest.name]  # only the newest weights
    run.write(earlier[1])  # an event of an earlier session, repeated
    run.run(trial(6, 87.0, 63.0))
    run.write(trial(5, outcome="running"))  # runs again all the same
    write_checkpoint(tmp_path, "trial-005")
    run.write(RUNNING)
    assert on_disk(tmp_path) == {"ft", "trial-004", "trial-005", "trial-006"}
    assert with_state(tmp_path) == {"trial-004", "trial-005"}


def test_a_folder_written_again_is_removed_again(tmp_path):
    search = fakes.Search(tmp_path)
    run = Search(search)  # there is no folder of trials yet
    run.run(trial(0, outcome="pruned"))
    folder = trial_folder(tmp_path, "trial-000")
    for event in (
        lambda: run.run(trial(1, outcome="pruned")),
        lambda: run.write(is_over=True),
    ):
        folder.mkdir()
        (folder / "file").write_text("written by a worker that was being stopped")
        event()
        assert not folder.exists()


def test_a_folder_that_cannot_be_removed_is_named_once(tmp_path, caplog):
    records = [trial(number, outcome="pruned") for number in range(3)]
    for record in records:
        checkpoint = write_checkpoint(tmp_path, record.trial_id)
        if record is records[0]:
            (checkpoint / WEIGHTS).unlink()
            (checkpoint / WEIGHTS).mkdir()  # permissions do not stop root
    run = Search(fakes.Search(tmp_path), records)
    run.write(RUNNING)
    assert on_disk(tmp_path) == {"trial-000"}
    (message,) = caplog.messages
    assert "train-trial-000: cannot be removed yet" in message


def test_the_front_of_several_objectives_keeps_its_weights(tmp_path):
    objectives = (Objective("id_val/acc"), Objective("train/loss", "min"))
    search = replace(constrained(tmp_path), objectives=objectives)
    trials = random_trials(30, 0)
    kept = {}
    for number, record in enumerate(trials, 1):
        kept = kept_trials(search.goal, (*kept.values(), record))
        assert {r.trial_id for r in pareto_front(search.goal, trials[:number])} <= kept.keys()
        assert best_trial(search.goal, trials[:number]).trial_id in kept


def test_the_first_trial_keeps_its_weights(tmp_path):
    """`confirm --rule first` may find that it is the best one, which `export` then writes."""
    given = trial(0, 70.0, 50.0, is_first_point=True)
    others = [trial(number, 80.0 + number, 60.0 + number) for number in (1, 2)]
    assert "trial-000" in kept_trials(fakes.Search(tmp_path).goal, [given, *others])
    proposed = replace(given, is_first_point=False)
    assert "trial-000" not in kept_trials(fakes.Search(tmp_path).goal, [proposed, *others])
