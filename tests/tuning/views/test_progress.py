import io
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from rich.console import Console

from tests.tuning import fakes
from tests.tuning.result_tables import text_of
from tuning.views.progress import ProgressCallback, pace, seconds_left, sparkline

SEARCH = fakes.search_record(Path("run"))
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def plain():
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def terminal(height=24):
    return Console(
        file=io.StringIO(), width=100, height=height, force_terminal=True, force_interactive=True
    )


def text(console):
    return console.file.getvalue()


def running(number, reports=3):
    trial = fakes.trial(number)
    return replace(trial, outcome="running", curve=trial.curve[:reports], ended_at=None)


def test_a_log_gets_one_plain_line_an_event():
    console = plain()
    report = fakes.report(120, 71.2, 44.0) | {"train/loss": 1.23}
    trial = fakes.trial(3, outcome="running", curve=(report,), ended_at=None)
    so_far = {"step": [90.0], "train/loss": [1.31], "train/images_per_s": [1812.4]}
    training, now = replace(trial, curve=(), progress=so_far), 1000.0
    with closing(ProgressCallback(console, clock=lambda: now)) as callback:
        callback.search_started(SEARCH)
        callback.trial_started(replace(trial, curve=()))
        for seconds in (59.0, 61.0, 120.0):  # a line a minute
            now = 1000.0 + seconds
            callback.trial_progressed(training)
        callback.trial_reported(trial)
        callback.trial_reported(trial)  # its node was lost, and it says again what it had said
        ended = replace(trial, outcome="failed", error="RuntimeError: [/red] boom", ended_at=None)
        callback.trial_ended(ended)
        callback.search_ended([ended, fakes.trial(4, 86, 62)], "finished")
    assert text(console).splitlines() == [
        "domainnet-vit-b32  16 trials of 240 steps  zero-shot  id 82.4  ood 61.0",
        "trial-003  started  method.reg_weight=1  method.text_length=8  optim.lr=1e-05",
        "trial-003  step 90/240  loss 1.31  1,812 images/s",
        "trial-003  step 120/240  id 71.2  ood 44.0  loss 1.23",
        "trial-003  goes on from step 120/240  id 71.2  ood 44.0  loss 1.23",
        "trial-003  failed  step 120/240  id 71.2  ood 44.0  loss 1.23  in 3m 00s  "
        "RuntimeError: [/red] boom",
        "1 of 16 trials done",
        "domainnet-vit-b32  finished  1 finished, 1 failed  "
        "best trial-004  id 86.0  ood 62.0  loss 0.505",
    ]


def test_a_terminal_shows_running_trials_and_gets_its_cursor_back():
    console = terminal()
    callback = ProgressCallback(console)
    callback.search_started(SEARCH)
    callback.trial_started(running(3))
    callback.search_ended([replace(running(3), outcome="stopped"), fakes.trial(1)], "stopped")
    assert "trial-003" in text(console)
    assert "best trial-001" in text(console)
    callback.close()  # once more does no harm
    assert text(console).rindex(SHOW_CURSOR) > text(console).rindex(HIDE_CURSOR)


def display(records, height=24, now=75.0):
    """The lines of the display after these events of a search that began at 0."""
    console, clock = terminal(height), 0.0
    with closing(ProgressCallback(console, clock=lambda: clock)) as callback:
        callback.search_started(SEARCH)
        for record in records:
            is_running = record.outcome == "running"
            (callback.trial_progressed if is_running else callback.trial_ended)(record)
        clock = now
        lines = console.render_lines(callback.render(SEARCH))
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def training(number, step):
    losses = [1.0, 0.8, 0.6, 0.4]
    steps = [step - 30.0, step - 20.0, step - 10.0, float(step)]
    progress = {"step": steps, "train/loss": losses, "train/images_per_s": [500.0] * 4}
    return replace(running(number), progress=progress)


@pytest.mark.parametrize("height", [8, 12, 24, 50])
@pytest.mark.parametrize("num_running", [0, 2, 30])
def test_the_display_is_never_longer_than_the_terminal(height, num_running):
    records = [training(number, 160) for number in range(num_running)]
    lines = display([*records, *(fakes.trial(100 + number) for number in range(20))], height)
    assert len(lines) < height
    shown = "\n".join(lines)
    assert "20 of 16 trials done" in shown
    assert "1m 15s" in shown
    if num_running == 30 and height < 30:
        assert "more running" in shown


def test_a_bar_moves_between_reports():
    (row,) = (line for line in display([training(3, 163), training(4, 170)]) if "trial-003" in line)
    assert "163/240" in row
    assert "█▆▃▁" in row
    assert "1,000 images/s" in display([training(3, 163), training(4, 170)])[1]


def test_no_time_left_is_shown_once_the_search_is_interrupted_or_over():
    console, clock = terminal(), 0.0
    with closing(ProgressCallback(console, clock=lambda: clock)) as callback:
        callback.search_started(SEARCH)
        callback.trial_progressed(training(0, 120))
        clock = 75.0
        assert " left" in text_of(callback.render(SEARCH))
        callback.is_ending = True
        assert " left" not in text_of(callback.render(SEARCH))
        callback.is_ending = False
        callback.search_ended([replace(running(3), outcome="stopped")], "stopped")
        assert " left" not in text_of(callback.render(SEARCH))


def test_the_best_trials_and_those_that_ended_last_are_shown():
    ended = [fakes.trial(number, 85, 60 + number % 5) for number in range(10)]
    ended[4] = replace(ended[4], outcome="failed", error="it broke")
    lines = display([*ended[5:], *ended[:5]])  # a resume brings them in another order
    best, last = lines.index("best"), lines.index("ended last")
    assert [line.split()[0] for line in lines[best + 1 : last]] == [
        "trial-009",
        "trial-003",
        "trial-008",
    ]
    assert [line.split()[0] for line in lines[last + 1 :]] == [
        "trial-009",
        "trial-008",
        "trial-007",
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], ""),
        ([2.0, 2.0], "▁▁"),
        ([0.0, float("nan"), 7.0], "▁█"),
        ([float(value) for value in range(8)], "▁▂▃▄▅▆▇█"),
        ([float(value // 3) for value in range(24)], "▁▁▂▃▃▄▅▅▆▇▇█"),
    ],
)
def test_a_curve_in_one_line(values, expected):
    assert sparkline(values) == expected


def test_the_time_left_is_that_of_mean_trials_side_by_side():
    began = ((0, 300), (0, 310), (300, 390), (310, 420), (390, 490))
    ended = [
        fakes.trial(number, started_at=float(start), ended_at=float(end))
        for number, (start, end) in enumerate(began)
    ]
    late = [replace(running(number), started_at=490.0) for number in (5, 6)]

    def left(records, budget_trials=11):
        search = replace(SEARCH, budget_trials=budget_trials)
        band = seconds_left(search, records, 520.0, 2)
        assert band is not None
        return sum(band) / 2

    # Trials take 100 s with a standard deviation of 10 s; the first two took longer. Running ones
    # still take 70 s. Of two slots, the slower one ends half a standard deviation later.
    assert left([*ended, *late]) == pytest.approx(70 + 2 * 100 + 5)  # 4 have not begun
    assert left([*ended, late[0]]) == pytest.approx(3 * 100 + 5)  # 5, on a free and a busy slot
    assert left([*ended, late[0]], budget_trials=6) == pytest.approx(70)
    assert "left" not in "".join(pace(replace(SEARCH, budget_trials=5), ended, 0.0, 500.0, 2))


@pytest.mark.parametrize(("at_once", "to_begin"), [(1, 20), (1, 1), (4, 20), (4, 1), (8, 8)])
def test_the_time_left_is_mostly_in_its_interval(at_once, to_begin):
    random, inside = Random(0), 0
    search = replace(SEARCH, budget_trials=10 + to_begin)
    for _ in range(300):
        lasted = [random.gauss(100.0, 20.0) for _ in range(10)]
        ended = [
            fakes.trial(number, started_at=0.0, ended_at=seconds)
            for number, seconds in enumerate(lasted)
        ]
        band = seconds_left(search, ended, 0.0, at_once)
        assert band is not None
        slots = [0.0] * at_once
        for _ in range(to_begin):
            slots.sort()
            slots[0] += random.gauss(100.0, 20.0)
        inside += band[0] <= max(slots) <= band[1]
    assert 0.6 < inside / 300 < 0.87


def test_two_trials_are_too_few_for_an_interval():
    two = [fakes.trial(n, started_at=0.0, ended_at=90.0 + n) for n in range(2)]
    assert seconds_left(replace(SEARCH, budget_trials=3), two, 0.0, 1) == (90.5, 90.5)
    three = [*two, fakes.trial(2, started_at=0.0, ended_at=110.0)]
    texts = pace(replace(SEARCH, budget_trials=9), three, 0.0, 0.0, 1)
    assert re.fullmatch(r"about \d+m \d\ds to \d+m \d\ds left", texts[1])


def test_before_a_trial_has_ended_the_time_left_is_that_at_the_pace_of_its_steps():
    trial = replace(training(0, 60), started_at=0.0)
    search = replace(SEARCH, budget_trials=5)
    # 60 of 240 steps took 30 s, so this trial still takes 90 s, and the other four 120 s each.
    assert seconds_left(search, [trial], 30.0, 2) == (330.0, 330.0)
    assert seconds_left(search, [replace(trial, curve=(), progress={})], 30.0, 2) is None
    # A resumed trial: 150 steps took 60 s before the pause and 15 s after it.
    resumed = replace(training(0, 150), started_at=100.0, earlier_seconds=60.0)
    assert seconds_left(replace(search, budget_trials=1), [resumed], 115.0, 1) == (45.0, 45.0)


def test_a_resumed_log_continues_the_count_of_trials_and_hours():
    console, now = plain(), 0.0
    budget = {"search": {"budget": {"hours": 2.0}}}
    two = [replace(running(number), started_at=3600.0) for number in (1, 2)]
    with closing(ProgressCallback(console, clock=lambda: now)) as callback:
        now, callback.earlier_seconds = 3600.0, 1800.0
        callback.search_started(replace(SEARCH, config=budget, budget_trials=7))
        callback.trial_ended(fakes.trial(0, started_at=0.0, ended_at=1000.0))
        for trial in two:
            callback.trial_started(trial)
        now = 5400.0
        callback.trial_ended(replace(two[0], outcome="finished", ended_at=now))
    # 4 trials of 1800 s have not begun, two of them run at once, and the other one is at its end.
    paces = [line for line in text(console).splitlines() if "trials done" in line]
    assert paces == ["2 of 7 trials done  about 1h 00m left  1 of 2 hours"]


def test_what_is_used_of_a_budget_is_shown():
    budget = {"search": {"budget": {"hours": 2.0, "gpu_hours": 8.0}}}
    trial = fakes.trial(1, gpus=4, started_at=0.0, ended_at=1800.0)
    texts = pace(replace(SEARCH, config=budget), [trial], 0.0, 3600.0, 1)
    assert texts[-2:] == ["1 of 2 hours", "2 of 8 GPU-hours"]
    texts = pace(SEARCH, [replace(trial, earlier_gpu_seconds=0.0)], 0.0, 3600.0, 1)
    assert texts[-1] == "2 GPU-hours"
    long = {"search": {"budget": {"hours": 200.0, "gpu_hours": 1500.0}}}
    texts = pace(replace(SEARCH, config=long), [replace(trial, gpus=2560)], 0.0, 432e3, 1)
    assert texts[-2:] == ["120 of 200 hours", "1,280 of 1,500 GPU-hours"]
