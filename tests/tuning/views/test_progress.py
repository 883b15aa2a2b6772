import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.tuning import fakes
from tuning.views.progress import ProgressCallback, seconds_left

SEARCH = fakes.Search(config={"search.budget.trials": 4})
RUNNING = fakes.trial(1, outcome="running", curve=(), ended_at=None)
PROGRESS = {"step": [30, 60], "train/loss": [1.5, 1.25], "train/images_per_s": [700, 800]}


@pytest.fixture
def shown():
    """A callback that has started, its clock as a list, and what it prints to a log."""
    clock, file = [1000.0], io.StringIO()
    callback = ProgressCallback(Console(file=file, width=80), lambda: clock[0])
    callback.search_started(SEARCH.run())
    return callback, clock, file.getvalue


def running(number):
    return replace(RUNNING, trial_id=f"trial-00{number}", number=number)


def test_a_log_has_at_most_a_line_for_an_event_and_a_minute(shown, screen):
    callback, clock, text = shown
    callback.trial_ended(fakes.trial(0))  # of an earlier session
    callback.trial_started(RUNNING)
    for seconds in (10, 30, 30, 20, 61, 61):  # nor is a line repeated
        clock[0] += seconds
        callback.trial_progressed(replace(RUNNING, progress=PROGRESS))
    callback.trial_reported(replace(RUNNING, curve=(fakes.report(120, 71.23, 44.0),)))
    callback.trial_reported(replace(RUNNING, curve=(fakes.report(80, 71.0, 44.0),)))
    callback.trial_progressed(RUNNING)  # it goes back to its checkpoint
    callback.trial_ended(fakes.trial(1, 85.0, 62.0))
    clock[0] += 60
    callback.trial_started(running(2))
    pruned = {"outcome": "pruned", "ended_at": RUNNING.started_at + 60}
    pruned = replace(running(2), curve=(fakes.report(120, 71.0, 44.0),), **pruned)
    callback.trial_reported(pruned)
    callback.trial_ended(pruned)
    clock[0] += 60
    callback.trial_started(running(3))
    callback.trial_ended(replace(running(3), outcome="failed", error="ValueError: bad [bold]"))
    screen("log_of_a_search", text())


def test_a_terminal_has_a_bar_for_the_search_and_for_each_running_trial():
    file = io.StringIO()
    callback = ProgressCallback(Console(file=file, width=120, force_terminal=True))
    callback.search_started(SEARCH.run())
    callback.trial_started(RUNNING)
    callback.trial_progressed(replace(RUNNING, progress=PROGRESS))
    bars = callback._bars.tasks
    assert [(bar.description, bar.completed, bar.total) for bar in bars] == [
        (SEARCH.folder.name, 0, 4), ("trial-001", 60, 240),
    ]  # fmt: skip
    callback.trial_ended(fakes.trial(1))
    (whole,) = callback._bars.tasks
    assert (whole.completed, "best trial-001" in whole.fields["about"]) == (1, True)
    callback.search_ended([fakes.trial(1)], "finished")
    callback.close()
    assert "trial-001  finished" in file.getvalue()


def test_the_budget_that_is_used_is_shown(shown):
    callback, _, text = shown
    budgets = SEARCH.config | {"search.budget.gpu_hours": 2}
    callback.search_started(replace(SEARCH, config=budgets).run())
    callback.trial_started(RUNNING)
    callback.trial_ended(fakes.trial(1, gpus=10.0))
    assert "1 of 2 GPU-hours" in text()


def test_the_time_left_is_the_mean_of_the_trials_over_the_slots():
    records = [fakes.trial(0), replace(RUNNING, curve=(fakes.report(120, 70, 50),))]
    # Two to begin and half a trial, one at a time, 360 s each.
    assert seconds_left(SEARCH.file, records, 0.0) == pytest.approx(2.5 * 360)
    assert seconds_left(SEARCH.file, [RUNNING], 0.0) is None


def test_the_start_of_the_workers_is_not_in_the_time_of_later_trials():
    first = fakes.trial(0)
    waited = replace(first, started_at=first.started_at - 400)
    assert waited.seconds == first.seconds + 400
    # Three to begin, one at a time: 240 steps of 1.5 s each, see `fakes.report`.
    assert seconds_left(SEARCH.file, [waited], 0.0) == pytest.approx(3 * 240 * 1.5)
