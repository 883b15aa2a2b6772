import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.tuning import fakes
from tuning.views.progress import ProgressCallback, seconds_left

SEARCH = fakes.search_record(Path("run"), budget_trials=4)
RUNNING = fakes.trial(1, outcome="running", curve=(), ended_at=None)
PROGRESS = {"step": [30, 60], "train/loss": [1.5, 1.25], "train/images_per_s": [700, 800]}


@pytest.fixture
def shown():
    """A callback that has started, its clock as a list, and what it prints to a log."""
    clock, file = [1000.0], io.StringIO()
    callback = ProgressCallback(Console(file=file, width=80), lambda: clock[0])
    callback.search_started(SEARCH)
    return callback, clock, lambda: file.getvalue().splitlines()


def test_a_log_has_one_line_an_event(shown):
    callback, _, lines = shown
    callback.trial_started(RUNNING)
    callback.trial_reported(replace(RUNNING, curve=(fakes.report(120, 71.23, 44.0),)))
    callback.trial_ended(fakes.trial(1, 85.0, 62.0))
    started, reported, ended = lines()
    assert started == "trial-001  started  reg_weight=1 text_length=8 lr=1e-05"
    assert reported == "trial-001  step 120/240  id 71.2  ood 44.0  loss 1.12"
    assert ended == (
        "trial-001  finished  step 240/240  id 85.0  ood 62.0  loss 0.505  in 6m 00s  "
        "(1 of 4 trials done, about 18m 00s left, best trial-001  id 85.0  ood 62.0)"
    )


def report(step):
    return "reported", replace(RUNNING, curve=(fakes.report(step, 71, 44),))


PRUNED = replace(report(120)[1], outcome="pruned", ended_at=RUNNING.started_at + 60)
FAILED = replace(RUNNING, outcome="failed", error="ValueError: bad [bold]")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("reported", PRUNED), ("ended", PRUNED)],
         ["trial-001  pruned  step 120/240  in 1m 00s  (1 of 4 trials done"]),
        ([("progressed", RUNNING)], []),  # it goes back to its checkpoint
        ([report(120), report(80)], ["trial-001  step 120/240", "trial-001  repeats step 80/240"]),
        ([("ended", FAILED)], ["trial-001  failed  step 0/240  ValueError: bad [bold]  ("]),
    ],
)  # fmt: skip
def test_what_happens_to_a_trial_is_one_line_or_none(events, expected, shown):
    callback, _, lines = shown
    callback.trial_started(RUNNING)
    for event, record in events:
        getattr(callback, f"trial_{event}")(record)
    begins = [line[: len(start)] for line, start in zip(lines()[1:], expected, strict=True)]
    assert begins == expected


def test_training_has_at_most_a_line_a_minute(shown):
    callback, clock, lines = shown
    callback.trial_started(RUNNING)
    for seconds in (10, 30, 30, 20):
        clock[0] += seconds
        callback.trial_progressed(replace(RUNNING, progress=PROGRESS))
    assert lines()[1:] == ["trial-001  step 60/240  loss 1.25  800 images/s"]


def test_ends_of_earlier_sessions_are_not_news(shown):
    callback, _, lines = shown
    callback.trial_ended(fakes.trial(0))
    assert lines() == []


def test_a_terminal_has_a_bar_for_the_search_and_for_each_running_trial():
    file = io.StringIO()
    callback = ProgressCallback(Console(file=file, width=120, force_terminal=True))
    callback.search_started(SEARCH)
    callback.trial_started(RUNNING)
    callback.trial_progressed(replace(RUNNING, progress=PROGRESS))
    bars = callback._bars.tasks
    assert [(bar.description, bar.completed, bar.total) for bar in bars] == [
        (SEARCH.name, 0, 4), ("trial-001", 60, 240),
    ]  # fmt: skip
    callback.trial_ended(fakes.trial(1))
    assert [bar.completed for bar in callback._bars.tasks] == [1]
    callback.search_ended([fakes.trial(1)], "finished")
    callback.close()
    assert "trial-001  finished" in file.getvalue()


def test_the_budget_that_is_used_is_shown(shown):
    callback, _, lines = shown
    callback.search_started(replace(SEARCH, config={"search": {"budget": {"gpu_hours": 2}}}))
    callback.trial_started(RUNNING)
    callback.trial_ended(fakes.trial(1, gpus=10.0))
    assert "1 of 2 GPU-hours" in lines()[-1]


def test_the_time_of_a_bar_goes_by_without_events():
    clock, file = [1000.0], io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    callback = ProgressCallback(console, lambda: clock[0])
    callback.search_started(replace(SEARCH, config={"search": {"budget": {"hours": 1}}}))
    callback.trial_started(RUNNING)
    clock[0] += 94
    callback._bars.refresh()
    callback.close()
    assert "1m 34s of 1h 00m" in file.getvalue()


def test_the_time_left_is_the_mean_of_the_trials_over_the_slots():
    records = [fakes.trial(0), replace(RUNNING, curve=(fakes.report(120, 70, 50),))]
    # Two to begin and half a trial, one at a time, 360 s each.
    assert seconds_left(SEARCH, records, 0.0) == pytest.approx(2.5 * 360)
    assert seconds_left(SEARCH, [RUNNING], 0.0) is None


def test_a_log_repeats_no_line(shown):
    callback, clock, lines = shown
    callback.trial_started(RUNNING)
    for _ in range(3):
        clock[0] += 61
        callback.trial_progressed(replace(RUNNING, progress=PROGRESS))
    assert lines()[1:] == ["trial-001  step 60/240  loss 1.25  800 images/s"]
