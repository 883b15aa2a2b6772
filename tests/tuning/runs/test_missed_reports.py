"""A driver that is killed at any of its writes, among others between checkpoint and journal."""

from collections import Counter
from itertools import count

from tests.tuning.agreement import journal_events
from tests.tuning.execution.inline_tuner import killed_at_write, without_ray
from tests.tuning.execution.instant import instant_file, resume_instantly, run_instantly
from tests.tuning.execution.slot import EVERY, STEPS
from tuning.runs.journal import read_history

LR = "optim.lr"


def reports(run):
    """The reports in the journal: trial, step and accuracy."""
    return [
        (event["trial"], event["report"]["step"], event["report"]["id_val/acc"])
        for event in journal_events(run)
        if event["event"] == "report"
    ]


def test_no_kill_loses_or_doubles_a_report(images_root, tmp_path):
    """A report that only its checkpoint has comes again; so does the last one of the journal."""
    for number in count():
        run = tmp_path / f"killed-{number}" / "runs" / "small"
        file = instant_file(images_root, run.parent, search__budget__trials=1)
        with without_ray(mlflow=False):
            with killed_at_write(number, run.parent):
                run_instantly(file)
            before = reports(run)
            was_killed = read_history(run).outcome is None
            if was_killed:
                resume_instantly(run)
        found = reports(run)
        twice = [report for report, times in Counter(found).items() if times > 1]
        assert twice in ([], before[-1:])
        assert found[: len(before)] == before
        records = read_history(run).records
        assert [record.outcome for record in records] == ["finished"]
        for record in records:
            assert [(p["step"], p["id_val/acc"]) for p in record.curve] == [
                (step, 50.0 + step - 100 * record.params[LR])
                for step in range(EVERY, STEPS + 1, EVERY)
            ]
        if not was_killed:
            break
    assert number > 7
