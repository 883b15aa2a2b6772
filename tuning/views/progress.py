"""The progress of a search in the terminal: a live display, or plain lines in a log.

A terminal shows a header, the running trials with a bar each, the best trials, and those that ended
last, with the curve of their training loss. A log file or a Ray job gets one line per event, and
between two of them one line a minute for each trial:

    trial-003  step 90/240  loss 1.31  812 images/s
    trial-003  step 120/240  id 71.2  ood 44.0  loss 1.23

Both tell how many trials have ended, about how long the rest takes, and what is used of a budget.
"""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heapreplace
from itertools import pairwise
from statistics import fmean, stdev

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.callbacks import Callback
from tuning.runs.ranking import best_trial, ranked
from tuning.runs.records import (
    TRAIN_LOSS,
    SearchOutcome,
    SearchRecord,
    TrialRecord,
)
from tuning.views.formatting import (
    format_hours,
    format_percent,
    format_seconds,
    format_value,
    short_names,
)
from tuning.views.leaderboard import OUTCOME_STYLE

_HEADER_LINES = 5  # two rules, two lines of text, and one for the cursor
_SECTION = 3  # trials that are shown of the best, and of those that ended last
_BAR_WIDTH = 16
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 12
_LINE_S = 60.0  # between two lines about the training of a trial in a log
_BAND = 1.28  # standard deviations on either side
RATE = "train/images_per_s"


class ProgressCallback(Callback):
    """Shows a search on a console: a live display if it is a terminal, else lines.

    The terminal is restored at `close`, at the end of the search or at the exit of the interpreter,
    whichever comes first. `close` may be called twice.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self.earlier_seconds = 0.0
        """Wall clock before `search_started`, which counts against a budget of hours too."""
        self.is_ending = False
        """The search ends before all trials have run, so no time left is shown."""
        self._console = console
        self._clock = clock
        self._search: SearchRecord | None = None
        self._began = clock()
        self._at_once = 0  # most trials of this session that ran at the same time
        self._records: dict[str, TrialRecord] = {}
        self._steps: dict[str, int] = {}  # of the last report of each trial
        self._printed_at: dict[str, float] = {}  # time of the last line about each trial
        self._sparklines: dict[str, str] = {}
        self._best: list[TrialRecord] = []
        self._num_ranked = 0
        self._live: Live | None = None

    def close(self) -> None:
        """Stop the live display; its last state stays on the screen."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            atexit.unregister(self.close)

    def search_started(self, search: SearchRecord) -> None:
        """Open the display."""
        self.close()
        self._search, self._began = search, self._clock() - self.earlier_seconds
        if not self._console.is_terminal:
            self._print(
                f"{search.name}  {search.budget_trials} trials of {search.total_steps} steps  "
                f"zero-shot{_accuracies(search.zero_shot.get, loss=False)}"
            )
            return
        self._live = Live(
            console=self._console,
            refresh_per_second=4,
            get_renderable=lambda: self.render(search),
            vertical_overflow="crop",
        )
        atexit.register(self.close)
        self._live.start()

    def trial_started(self, record: TrialRecord) -> None:
        """Add a row, or print a line with the trial's parameters."""
        values = "  ".join(f"{key}={format_value(v)}" for key, v in record.params.items())
        self._update(record, f"started  {values}".rstrip())
        running = sum(r.outcome == "running" for r in self._records.values())
        self._at_once = max(self._at_once, running)

    def trial_progressed(self, record: TrialRecord) -> None:
        """Update the bar, or print a line if the last one about this trial is a minute old."""
        loss, rate = (record.progress[name][-1] for name in (TRAIN_LOSS, RATE))
        since = self._clock() - self._printed_at.get(record.trial_id, 0.0)
        text = f"{self._step(record)}  loss {loss:.3g}  {rate:,.0f} images/s"
        self._update(record, text if since >= _LINE_S else "")

    def trial_reported(self, record: TrialRecord) -> None:
        """Update the bar, or print a line; a trial that lost its node repeats earlier steps."""
        step, known = self._step(record), self._steps.get(record.trial_id, 0)
        self._steps[record.trial_id] = record.step
        went_on = "goes on from " if record.step <= known else ""
        self._update(record, f"{went_on}{step}{_accuracies(record.last)}")

    def trial_ended(self, record: TrialRecord) -> None:
        """Move the trial to those that ended, or print a line with its outcome."""
        known = self._records.get(record.trial_id)
        took = format_seconds(record.seconds)
        text = f"{record.outcome}  {self._step(record)}{_accuracies(record.last)}"
        text += f"  in {took}" if took else ""
        self._update(record, f"{text}  {record.error_line}".rstrip())
        # A resume brings the ends of earlier sessions again, before anything runs.
        ran = known is not None and known.outcome == "running"
        if self._live is None and self._search is not None and record.kind == "trial" and ran:
            records = list(self._records.values())
            self._print("  ".join(self._pace(self._search, records, self._clock())))

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Show all trials once more and close the display."""
        self.is_ending = True
        self._records = {record.trial_id: record for record in records}
        if self._live is not None:
            self._live.refresh()
        elif self._search is not None:
            best = best_trial(self._search, records)
            chosen = f"  best {best.trial_id}{_accuracies(best.last)}" if best else ""
            self._print(f"{self._search.name}  {outcome}  {_counts(records)}{chosen}")
        self.close()

    def _update(self, record: TrialRecord, text: str) -> None:
        self._records[record.trial_id] = record.compact  # read by the display's thread
        if self._live is not None:
            losses = [point[TRAIN_LOSS] for point in record.train_points]
            self._sparklines[record.trial_id] = sparkline(losses)
        elif self._search is not None and text:
            self._printed_at[record.trial_id] = self._clock()
            self._print(f"{record.trial_id}  {text}")

    def render(self, search: SearchRecord) -> RenderableType:
        """The display, lower than the terminal; running trials are shown before ended ones."""
        records = list(self._records.values())  # a copy: another thread adds trials
        running = [r for r in records if r.outcome == "running"]
        ended = [r for r in records if r.outcome != "running"]
        if len(ended) != self._num_ranked:  # not four times a second
            usable = [r for r in ended if r.outcome != "failed" and search.values(r) is not None]
            self._num_ranked, self._best = len(ended), ranked(search, usable)[:_SECTION]
        # Events of earlier sessions come again after a resume, in another order.
        ended.sort(key=lambda r: r.ended_at or 0.0, reverse=True)

        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(width=_BAR_WIDTH, no_wrap=True)
        for _ in range(3):
            table.add_column(justify="right", no_wrap=True)
        table.add_column(width=_SPARKLINE_WIDTH, no_wrap=True, style="cyan")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim", ratio=1)  # shrinks first

        def add(record: TrialRecord, state: RenderableType) -> None:
            table.add_row(*_row(search, record, state, self._sparklines.get(record.trial_id, "")))

        room = max(0, self._console.height - _HEADER_LINES)
        # If not all fit, one line states the number of the others.
        shown = running if len(running) <= room else running[: max(0, room - 1)]
        for record in shown:
            add(record, ProgressBar(search.total_steps, record.trained_steps, width=_BAR_WIDTH))
        if hidden := len(running) - len(shown):
            table.add_row(f"... {hidden} more running", style="dim")
        room -= len(shown) + (hidden > 0)
        for title, trials in (("best", self._best), ("ended last", ended[:_SECTION])):
            fitting = trials[: max(0, room - 1)]
            if fitting:
                table.add_row(title, style="dim")
                room -= 1 + len(fitting)
            for record in fitting:
                add(record, Text(record.outcome, style=OUTCOME_STYLE[record.outcome]))
        now = self._clock()
        texts = self._pace(search, records, now)
        texts += [format_seconds(now - self._began), _counts(records)]
        return Group(*_header(search, self._best, texts), table)

    def _pace(self, search: SearchRecord, records: Sequence[TrialRecord], now: float) -> list[str]:
        return pace(search, records, self._began, now, self._at_once, self.is_ending)

    def _step(self, record: TrialRecord) -> str:
        total = self._search.total_steps if self._search else "?"
        return f"step {record.trained_steps}/{total}"

    def _print(self, line: str) -> None:
        # No markup, no colour, and no wrapping at the 80 columns that rich assumes for a log file.
        self._console.out(line, highlight=False)


def pace(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    began: float,
    now: float,
    at_once: int,
    is_ending: bool = False,
) -> list[str]:
    """What has ended, the time that is left, and what is used of the budgets, a text each."""
    ended = sum(r.kind == "trial" and r.is_final for r in records)
    texts = [f"{ended} of {search.budget_trials} trials done"]
    left = None if is_ending else seconds_left(search, records, now, at_once)
    if left is not None and left[1]:
        band = dict.fromkeys(format_seconds(seconds) for seconds in left)
        texts.append(f"about {' to '.join(band)} left")
    # Images per second that the trials train on, as far as is known.
    running = [r for r in records if r.outcome == "running"]
    if rate := sum(r.progress[RATE][-1] if r.progress else r.last(RATE) or 0.0 for r in running):
        texts.append(f"{rate:,.0f} images/s")
    used = {"hours": now - began, "gpu_hours": sum(r.gpu_seconds(now) for r in records)}
    for key, unit in (("hours", "hours"), ("gpu_hours", "GPU-hours")):
        if (limit := search.configured("search", "budget", key)) is not None:
            texts.append(f"{format_hours(used[key] / 3600)} of {limit:,g} {unit}")
        elif key == "gpu_hours" and used[key]:
            texts.append(f"{format_hours(used[key] / 3600)} {unit}")
    return texts


def seconds_left(
    search: SearchRecord, records: Sequence[TrialRecord], now: float, at_once: int
) -> tuple[float, float] | None:
    """About how long the trials will take that have not ended.

    A trial is taken to last as long as the mean of those that began after another had ended, if
    there are any, since the first ones also start the workers. Before one has ended, it is taken to
    go on at the pace of its steps so far. The next trial begins where one ends first.

    Returns:
        An interval in seconds. It is about 1.3 standard deviations wide on either side, and held
        the truth in 6 to 8 of 10 simulated searches. A single value, twice, for fewer than three
        trials to judge by; None before a step is known to be done.
    """
    running = [r for r in records if r.outcome == "running"]
    elapsed = [
        r.earlier_seconds + (0.0 if r.started_at is None else now - r.started_at) for r in running
    ]
    ended = [r for r in records if r.ended_at is not None and r.seconds is not None]
    first_end = min((r.ended_at or 0.0 for r in ended), default=0.0)
    warm = [r for r in ended if (r.started_at or 0.0) >= first_end]
    lasted = [r.seconds or 0.0 for r in warm or ended] or [
        seconds * search.total_steps / r.trained_steps
        for r, seconds in zip(running, elapsed, strict=True)
        if r.trained_steps
    ]
    if not lasted:
        return None
    each = fmean(lasted)
    slots = [max(0.0, each - seconds) for seconds in elapsed]
    begun = sum(r.kind == "trial" for r in records)
    to_begin = max(0, search.budget_trials - begun)
    missing = to_begin + len(running)
    slots += [0.0] * (min(max(1, at_once), missing) - len(slots))
    heapify(slots)
    for _ in range(to_begin):
        heapreplace(slots, slots[0] + each)
    left = max(slots, default=0.0)
    if len(lasted) < 3 or not ended or not missing:
        return left, left
    sd, share = stdev(lasted), missing / len(slots)
    spread = _BAND * sd * math.sqrt(share / len(slots) + share**2 / len(lasted))
    if len(slots) > 1:
        # The slowest slot ends the search. Trials that wait for a free slot even that out.
        last = sum(left - slot <= sd for slot in slots)
        left += sd * (0.5 if missing > len(slots) else math.sqrt(math.log(last)))
        spread += 0.3 * sd
    return max(0.0, left - spread), left + spread


def sparkline(values: Sequence[float], width: int = _SPARKLINE_WIDTH) -> str:
    """A curve in one line of text, from the lowest to the highest value; empty without a curve."""
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2:
        return ""
    width = min(width, len(values))
    edges = [len(values) * column // width for column in range(width + 1)]
    means = [fmean(values[low:high]) for low, high in pairwise(edges)]
    low, height = min(means), max(means) - min(means)
    return "".join(_BLOCKS[round((m - low) / height * 7) if height else 0] for m in means)


def _header(
    search: SearchRecord, best: Sequence[TrialRecord], texts: Sequence[str]
) -> Iterable[RenderableType]:
    yield Rule(f"[bold]{escape(search.name)}[/]", align="left", style="dim")
    yield Text("  ·  ".join(texts), no_wrap=True, overflow="ellipsis")
    zero_shot = f"zero-shot{_accuracies(search.zero_shot.get, loss=False)}"
    line = Text(no_wrap=True, overflow="ellipsis")
    if best:
        accuracies = _accuracies(best[0].last, loss=False)
        line.append(f"best {best[0].trial_id}{accuracies}", style="bold green")
        line.append("  ·  ")
    line.append(zero_shot, style="dim")
    yield line
    yield Rule(style="dim")


def _row(
    search: SearchRecord,
    record: TrialRecord,
    state: RenderableType,
    sparkline: str,
) -> tuple[RenderableType, ...]:
    names, values = short_names(list(record.params)), record.params.values()
    params = "  ".join(f"{n} {format_value(v)}" for n, v in zip(names, values, strict=True))
    id_acc, ood_acc = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return (
        escape(record.trial_id),
        state,
        f"{record.trained_steps}/{search.total_steps}",
        f"id {format_percent(id_acc)}" if id_acc is not None else "",
        f"ood {format_percent(ood_acc)}" if ood_acc is not None else "",
        sparkline,
        format_seconds(record.seconds),
        escape(record.error_line or params),
    )


def _counts(records: Sequence[TrialRecord]) -> str:
    """Numbers of trials by outcome, such as `3 running, 5 finished`; without references."""
    trials = [r for r in records if r.kind == "trial"]
    counts = [(sum(r.outcome == outcome for r in trials), outcome) for outcome in OUTCOME_STYLE]
    return ", ".join(f"{number} {outcome}" for number, outcome in counts if number) or "0 trials"


def _accuracies(metric: Callable[[str], float | None], loss: bool = True) -> str:
    names = [("id", ID_ACC, ".1f"), ("ood", OOD_MEAN_ACC, ".1f"), ("loss", TRAIN_LOSS, ".3g")]
    values = [(label, metric(name), spec) for label, name, spec in names[: 2 + loss]]
    return "".join(f"  {label} {v:{spec}}" for label, v, spec in values if v is not None)
