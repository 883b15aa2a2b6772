from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.tuning import fakes
from tuning.reporting.progress import ProgressCallback, pace, render, seconds_left
from tuning.runs.records import TrialRecord

SEARCH = fakes.search_record(Path("run"))
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def plain() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def terminal(height: int = 24) -> Console:
    return Console(
        file=io.StringIO(), width=100, height=height, force_terminal=True, force_interactive=True
    )


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def running(number: int, reports: int = 3) -> TrialRecord:
    trial = fakes.trial(number)
    return replace(trial, outcome="running", curve=trial.curve[:reports], ended_at=None)


def test_a_log_gets_one_plain_line_an_event() -> None:
    console = plain()
    report = fakes.report(120, 71.2, 44.0) | {"train/loss": 1.23}
    trial = fakes.trial(3, outcome="running", curve=(report,), ended_at=None)
    with closing(ProgressCallback(console)) as callback:
        callback.search_started(SEARCH)
        callback.trial_started(replace(trial, curve=()))
        callback.trial_reported(trial)
        callback.trial_reported(trial)  # its node was lost, and it says again what it had said
        ended = replace(trial, outcome="failed", error="RuntimeError: [/red] boom", ended_at=None)
        callback.trial_ended(ended)
        callback.search_ended([ended, fakes.trial(4, 86, 62)], "finished")
    assert text(console).splitlines() == [
        "domainnet-vit-b32  16 trials of 240 steps  zero-shot  id 82.4  ood 61.0",
        "trial-003  started  method.reg_weight=1  method.text_length=8  optim.lr=1e-05",
        "trial-003  step 120/240  id 71.2  ood 44.0  loss 1.23",
        "trial-003  goes on from step 120/240  id 71.2  ood 44.0  loss 1.23",
        "trial-003  failed  step 120/240  id 71.2  ood 44.0  loss 1.23  in 3m 00s  "
        "RuntimeError: [/red] boom",
        "1 of 16 trials done",
        "domainnet-vit-b32  finished  1 finished, 1 failed  "
        "best trial-004  id 86.0  ood 62.0  loss 0.505",
    ]


def test_a_terminal_shows_running_trials_and_gets_its_cursor_back() -> None:
    console = terminal()
    callback = ProgressCallback(console)
    callback.search_started(SEARCH)
    callback.trial_started(running(3))
    callback.search_ended([replace(running(3), outcome="stopped"), fakes.trial(1)], "stopped")
    assert "trial-003" in text(console)
    assert "best trial-001" in text(console)
    callback.close()  # once more does no harm
    assert text(console).rindex(SHOW_CURSOR) > text(console).rindex(HIDE_CURSOR)


def test_an_exception_gives_the_terminal_back() -> None:
    console = terminal()

    def interrupted() -> None:
        with closing(ProgressCallback(console)) as callback:
            callback.search_started(SEARCH)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert text(console).rindex(SHOW_CURSOR) > text(console).rindex(HIDE_CURSOR)


@pytest.mark.parametrize("height", [8, 12, 24, 50])
@pytest.mark.parametrize("num_running", [0, 2, 30])
def test_the_display_is_never_longer_than_the_terminal(height: int, num_running: int) -> None:
    console = terminal(height)
    records = [running(number) for number in range(num_running)]
    records += [fakes.trial(100 + number) for number in range(20)]
    lines = console.render_lines(render(SEARCH, records, 0.0, 75.0, height, 2))
    assert len(lines) < height
    shown = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert "20 of 16 trials done" in shown
    assert "1m 15s" in shown
    if num_running == 30 and height < 30:
        assert "more running" in shown


def test_the_time_left_is_that_of_the_median_trial() -> None:
    began = ((0, 300), (0, 310), (300, 390), (310, 420), (390, 490))
    ended = [
        replace(fakes.trial(number), started_at=float(start), ended_at=float(end))
        for number, (start, end) in enumerate(began)
    ]
    late = [replace(running(number), started_at=490.0) for number in (5, 6)]
    search = replace(SEARCH, budget_trials=11)
    # 4 trials have not begun, and 2 still take 70 s each; 2 run at once. The first two took longer.
    assert seconds_left(search, [*ended, *late], 520.0, 2) == (4 * 100 + 2 * 70) / 2
    assert seconds_left(search, [*ended, late[0]], 520.0, 2) == (5 * 100 + 70) / 2
    assert seconds_left(replace(search, budget_trials=6), [*ended, late[0]], 520.0, 2) == 70
    assert seconds_left(search, late, 520.0, 2) is None
    assert "left" not in "".join(pace(replace(SEARCH, budget_trials=5), ended, 0.0, 500.0, 2))


def test_a_resumed_log_continues_the_count_of_trials_and_hours() -> None:
    console, now = plain(), 0.0
    budget = {"search": {"budget": {"hours": 2.0}}}
    two = [replace(running(number), started_at=3600.0) for number in (1, 2)]
    with closing(ProgressCallback(console, clock=lambda: now)) as callback:
        now, callback.earlier_seconds = 3600.0, 1800.0
        callback.search_started(replace(SEARCH, config=budget, budget_trials=7))
        callback.trial_ended(replace(fakes.trial(0), started_at=0.0, ended_at=1000.0))
        for trial in two:
            callback.trial_started(trial)
        now = 5400.0
        callback.trial_ended(replace(two[0], outcome="finished", ended_at=now))
    # 4 trials of 1800 s have not begun, two of them run at once, and the other one is at its end.
    paces = [line for line in text(console).splitlines() if "trials done" in line]
    assert paces == ["2 of 7 trials done  about 1h 00m left  1 of 2 hours"]


def test_what_is_used_of_a_budget_is_shown() -> None:
    budget = {"search": {"budget": {"hours": 2.0, "gpu_hours": 8.0}}}
    trial = replace(fakes.trial(1), gpus=4, started_at=0.0, ended_at=1800.0)
    texts = pace(replace(SEARCH, config=budget), [trial], 0.0, 3600.0, 1)
    assert texts[-2:] == ["1 of 2 hours", "2 of 8 GPU-hours"]
    texts = pace(SEARCH, [replace(trial, earlier_gpu_seconds=0.0)], 0.0, 3600.0, 1)
    assert texts[-1] == "2 GPU-hours"


def test_the_trials_that_ended_last_are_shown() -> None:
    console = terminal()
    records = [fakes.trial(number) for number in range(10)]
    lines = console.render_lines(render(SEARCH, records, 0.0, 0.0, 24, 2))
    shown = "\n".join("".join(segment.text for segment in line) for line in lines)
    table = shown.split("─\n")[-1]
    assert "trial-009" in table
    assert "trial-002" not in table
