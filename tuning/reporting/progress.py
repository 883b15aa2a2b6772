"""The progress of a search in the terminal: a live display, or plain lines in a log.

A terminal shows a header, the running trials with a bar each, and the trials that ended last. A log
file or a Ray job gets one line per event:

    trial-003  step 120/240  id 71.2  ood 44.0  loss 1.23

Both tell how many trials have ended, about how long the rest takes, and what is used of a budget.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.reporting.formatting import format_percent, format_seconds, format_value, short_names
from tuning.reporting.leaderboard import OUTCOME_STYLE
from tuning.runs.callbacks import Callback
from tuning.runs.records import (
    TRAIN_LOSS,
    SearchOutcome,
    SearchRecord,
    TrialRecord,
)
from tuning.selection.ranking import best_trial

_HEADER_LINES = 5  # two rules, two lines of text, and one for the cursor
_LAST_ENDED = 6
_BAR_WIDTH = 24


class ProgressCallback(Callback):
    """Shows a search on a console: a live display if it is a terminal, else lines.

    The terminal is restored at `close`, at the end of the search or at the exit of the interpreter,
    whichever comes first. `close` may be called twice.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self.earlier_seconds = 0.0
        """Wall clock before `search_started`, which counts against a budget of hours too."""
        self._console = console
        self._clock = clock
        self._search: SearchRecord | None = None
        self._began = clock()
        self._at_once = 0  # most trials of this session that ran at the same time
        self._records: dict[str, TrialRecord] = {}
        self._steps: dict[str, int] = {}  # of the last report of each trial
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
            get_renderable=lambda: render(
                search,
                list(self._records.values()),  # a copy: another thread adds trials
                self._began,
                self._clock(),
                self._console.height,
                self._at_once,
            ),
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
            records, now = list(self._records.values()), self._clock()
            self._print("  ".join(pace(self._search, records, self._began, now, self._at_once)))

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Show all trials once more and close the display."""
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
        if self._live is None and self._search is not None:
            self._print(f"{record.trial_id}  {text}")

    def _step(self, record: TrialRecord) -> str:
        total = self._search.total_steps if self._search else "?"
        return f"step {record.step}/{total}"

    def _print(self, line: str) -> None:
        # No markup, no colour, and no wrapping at the 80 columns that rich assumes for a log file.
        self._console.out(line, highlight=False)


def render(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    began: float,
    now: float,
    height: int,
    at_once: int,
) -> RenderableType:
    """The display in at most `height` lines; running trials are shown before ended ones.

    Args:
        began: Unix time of the start of the search, as if its sessions had no pauses between them.
        at_once: trials that run side by side.
    """
    running = [r for r in records if r.outcome == "running"]
    ended = [r for r in records if r.outcome != "running"]
    room = max(0, height - _HEADER_LINES)
    # If not all fit, one line states the number of the others.
    shown = running if len(running) <= room else running[: max(0, room - 1)]
    hidden = len(running) - len(shown)
    # Events of earlier sessions come again after a resume, so their order is not that of the ends.
    ended.sort(key=lambda r: r.ended_at or 0.0)
    num_ended = min(_LAST_ENDED, room - len(shown) - (hidden > 0))
    last = ended[-num_ended:] if num_ended > 0 else []

    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(width=_BAR_WIDTH, no_wrap=True)
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim", ratio=1)  # shrinks first
    for record in shown:
        bar = ProgressBar(search.total_steps, record.step, width=_BAR_WIDTH)
        table.add_row(*_row(search, record, bar))
    if hidden:
        table.add_row(f"... {hidden} more running", *[""] * 6, style="dim")
    for record in reversed(last):
        outcome = Text(record.outcome, style=OUTCOME_STYLE[record.outcome])
        table.add_row(*_row(search, record, outcome))
    texts = [*pace(search, records, began, now, at_once), format_seconds(now - began)]
    return Group(*_header(search, records, texts), table)


def pace(
    search: SearchRecord, records: Sequence[TrialRecord], began: float, now: float, at_once: int
) -> list[str]:
    """What has ended, the time that is left, and what is used of the budgets, a text each."""
    ended = sum(r.kind == "trial" and r.outcome != "running" for r in records)
    texts = [f"{ended} of {search.budget_trials} trials done"]
    if left := seconds_left(search, records, now, at_once):
        texts.append(f"about {format_seconds(left)} left")
    used = {"hours": now - began, "gpu_hours": sum(r.gpu_seconds(now) for r in records)}
    for key, unit in (("hours", "hours"), ("gpu_hours", "GPU-hours")):
        if (limit := search.configured("search", "budget", key)) is not None:
            texts.append(f"{used[key] / 3600:.2g} of {limit:g} {unit}")
        elif key == "gpu_hours" and used[key]:
            texts.append(f"{used[key] / 3600:.2g} {unit}")
    return texts


def seconds_left(
    search: SearchRecord, records: Sequence[TrialRecord], now: float, at_once: int
) -> float | None:
    """About how long the trials will take that have not ended; None before one has ended.

    A trial is taken to last as long as the median of those that began after another had ended, if
    there are any, since the first ones also start the workers.
    """
    ended = [r for r in records if r.ended_at is not None and r.seconds is not None]
    if not ended:
        return None
    first_end = min(r.ended_at or 0.0 for r in ended)
    warm = [r for r in ended if (r.started_at or 0.0) >= first_end]
    each = median(r.seconds or 0.0 for r in warm or ended)
    elapsed = [now - (r.started_at or now) for r in records if r.outcome == "running"]
    running = [max(0.0, each - seconds) for seconds in elapsed]
    trials = sum(r.kind == "trial" for r in records)
    work = max(0, search.budget_trials - trials) * each + sum(running)
    return max(work / max(1, at_once), *running, 0.0)


def _header(
    search: SearchRecord, records: Sequence[TrialRecord], texts: Sequence[str]
) -> Iterable[RenderableType]:
    yield Rule(f"[bold]{escape(search.name)}[/]", align="left", style="dim")
    yield Text("  ·  ".join([*texts, _counts(records)]), no_wrap=True, overflow="ellipsis")
    zero_shot = f"zero-shot{_accuracies(search.zero_shot.get, loss=False)}"
    best = best_trial(search, [r for r in records if r.outcome != "running"])
    line = Text(no_wrap=True, overflow="ellipsis")
    if best is not None:
        line.append(f"best {best.trial_id}{_accuracies(best.last, loss=False)}", style="bold green")
        line.append("  ·  ")
    line.append(zero_shot, style="dim")
    yield line
    yield Rule(style="dim")


def _row(
    search: SearchRecord, record: TrialRecord, state: RenderableType
) -> tuple[RenderableType, ...]:
    names, values = short_names(list(record.params)), record.params.values()
    params = "  ".join(f"{n} {format_value(v)}" for n, v in zip(names, values, strict=True))
    id_acc, ood_acc = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return (
        escape(record.trial_id),
        state,
        f"{record.step}/{search.total_steps}",
        f"id {format_percent(id_acc)}" if id_acc is not None else "",
        f"ood {format_percent(ood_acc)}" if ood_acc is not None else "",
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
