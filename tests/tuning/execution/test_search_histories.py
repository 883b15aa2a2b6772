"""Any history of a search: killed at any write, resumed and extended, with trials that fail."""

import tempfile
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.tuning.agreement import disagreements, journal_events
from tests.tuning.execution.inline_tuner import REPORTED, killed_at_write, without_ray
from tests.tuning.execution.instant import instant_file, resume_instantly, run_instantly
from tests.tuning.execution.slot import BREAK, EVERY, STEPS
from trainers.errors import ConfigError
from tuning.log.history import read_history
from tuning.run import load_run
from tuning.views.completion import complete_mlflow

ASHA = {"name": "asha", "grace_steps": EVERY, "reduction_factor": 2}
SETTINGS = {
    "search__sampler__name": "random",
    "search__scheduler": ASHA,
    "search__references": ["ft"],
    "search__resources__max_concurrent": 2,
    "search__budget__failures": None,
}
SESSIONS = 5


class Story:
    """What the search has been through, drawn by Hypothesis."""

    def __init__(self, data, root, folder):
        self.draw, self.runs = data.draw, folder / "runs"
        self.file = instant_file(root, self.runs, **SETTINGS)
        self.run, self.trials = self.runs / "small", self.file.search.budget.trials
        self.seen = {}
        REPORTED.clear()

    def choose(self, running):
        """Which trial goes on, and whether it fails."""
        fails, broken = self.draw(st.integers(0, 9)) == 0, self.runs / BREAK
        broken.write_text("AcceleratorError: launch failure") if fails else broken.unlink(True)
        return self.draw(st.integers(0, running - 1))

    def session(self, kill_at):
        """Search or resume; killed at a write, or to the end."""
        is_killed = nullcontext() if kill_at is None else killed_at_write(kill_at, self.runs)
        with (
            without_ray(mlflow=False, choose=self.choose),
            patch("tuning.algorithms.studies.LEAST_FINISHED", 1),  # so that trials are pruned
            is_killed,
        ):
            if not (self.run / "journal.jsonl").exists():
                run_instantly(self.file)
            elif read_history(self.run).outcome == "finished":
                self.trials += 2
                budget = f"search.budget.trials={self.trials}"
                resume_instantly(self.run, budget)
            else:
                resume_instantly(self.run)

    def check(self):
        """What holds after any session."""
        try:
            records = read_history(self.run).records
        except ConfigError:  # it was killed before it had a journal
            assert self.seen == {}
            return
        numbers = [record.number for record in records if record.kind == "trial"]
        assert len(set(numbers)) == len(numbers)
        for record in records:
            now = record.gpu_seconds(record.ended_at)
            outcome, step, seconds, params = self.seen.get(record.trial_id, ("", 0, 0.0, None))
            assert now >= seconds
            assert params in (None, record.params)
            if outcome in ("finished", "pruned", "failed"):
                assert (record.outcome, record.step) == (outcome, step)
            self.seen[record.trial_id] = (record.outcome, record.step, now, record.params)
        assert self.seen.keys() == {record.trial_id for record in records}


def live(data, root):
    with tempfile.TemporaryDirectory() as folder:
        story = Story(data, root, Path(folder))
        for _ in range(data.draw(st.integers(0, SESSIONS))):
            story.session(data.draw(st.none() | st.integers(0, 60)))
            story.check()
        story.session(None)
        story.check()
        run = load_run(story.run)
        assert run.history.outcome == "finished"
        assert "refused" not in complete_mlflow(run)
        assert disagreements(story.run) == []
        for record in run.history.records:
            if record.outcome != "failed":  # one may fail after a kill, in place of its last report
                assert record.step == REPORTED[record.trial_id]
        finished = [record for record in run.history.records if record.outcome == "finished"]
        # Of equal ones, a trial is named before the reference, and an earlier trial before others.
        finished.sort(key=lambda record: (record.kind == "reference", record.number))
        if any(record.kind == "trial" for record in finished):
            best = max(finished, key=lambda record: record.metrics["val/mean_acc"])
            assert run.best.trial_id == best.trial_id


def test_no_kill_loses_or_doubles_a_report(images_root, tmp_path):
    """The driver is killed at each of its writes, among others between checkpoint and journal."""

    def reports():
        return [(e["trial"], e["report"]) for e in journal_events(run) if e["event"] == "report"]

    for number in count():
        run = tmp_path / f"killed-{number}" / "runs" / "small"
        file = instant_file(images_root, run.parent, search__budget__trials=1)
        with without_ray(mlflow=False):
            with killed_at_write(number, run.parent):
                run_instantly(file)
            before, was_killed = reports(), read_history(run).outcome is None
            if was_killed:
                resume_instantly(run)
        found = reports()
        assert found[: len(before)] == before
        # A report that only its checkpoint has comes again; so does the last one of the journal.
        assert [one for n, one in enumerate(found) if one in found[:n]] in ([], before[-1:])
        (record,) = read_history(run).records
        assert record.outcome == "finished"
        assert [point["step"] for point in record.curve] == list(range(EVERY, STEPS + 1, EVERY))
        if not was_killed:
            break
    assert number > 7


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@given(st.data())
@settings(max_examples=12, derandomize=True, phases=[Phase.generate], **COMMON)
def test_all_views_agree_after_any_history(images_root, data):
    live(data, images_root)


@pytest.mark.nightly
@given(st.data())
@settings(**COMMON)  # 100; --hypothesis-profile many: 1,000
def test_all_views_agree_after_any_of_many_histories(images_root, data):
    live(data, images_root)
