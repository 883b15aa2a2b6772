"""The progress of a search in the terminal: bars, or one line an event where there is none.

A terminal shows a bar for the search and one for each running trial. A log file or a Ray job gets
one line per event, and between two of them one line a minute for each trial:

    trial-003  step 90/240  loss 1.31  812 images/s
    trial-003  step 120/240  id 71.2  ood 44.0  loss 1.23
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.config.schema import SearchFile
from tuning.log.callbacks import Callback
from tuning.log.records import SECONDS, TRAIN_LOSS, SearchOutcome, TrialRecord
from tuning.results.ranking import best_trial, finished_trials
from tuning.run import Run
from tuning.views.formatting import format_hours, format_params, format_seconds

RATE = "train/images_per_s"
LINE_SECONDS = 60.0
"""Between two lines about the training of a trial in a log."""


class ProgressCallback(Callback):
    """Shows a search on a console. `close` restores the terminal and may be called twice.

    Args:
        clock: Unix time in seconds.
        title: of the bar of the search; by default the name of the run folder.
        shows_best: name the best trial so far. `plan` and `confirm` choose none.
    """

    _run: Run
    _whole: TaskID
    """The bar of the search."""

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.time,
        title: str = "",
        shows_best: bool = True,
    ) -> None:
        self.earlier_seconds = 0.0
        """Wall clock before `search_started`, which counts against a budget of hours too."""
        self._is_ending = False  # and with it the time left
        self._console = console
        self._clock = clock
        self._title = title
        self._shows_best = shows_best
        self._records: dict[str, TrialRecord] = {}
        self._printed: dict[str, tuple[float, str]] = {}  # when, and what, by trial ID
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def close(self) -> None:
        """Remove the bars of running trials; that of the search stays."""
        bars, self._bars = self._bars, None
        if bars is not None:
            for task in self._tasks.values():
                bars.remove_task(task)
            bars.stop()

    def search_started(self, run: Run) -> None:
        """Open the display."""
        self.close()
        self._run = run
        self._began = self._clock() - self.earlier_seconds
        if self._console.is_terminal:
            # Of a narrow terminal, the last column gets what the others leave.
            rest = Column(no_wrap=True, ratio=1, overflow="ellipsis")
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[about]}", style="dim", markup=False, table_column=rest),
                console=self._console,
                refresh_per_second=2,
                expand=True,
            )
            total = run.file.most_trials
            self._whole = self._bars.add_task(self._title or run.name, total=total, about="")
            self._bars.start()

    def trial_started(self, record: TrialRecord) -> None:
        """Add a bar, or print a line with the trial's parameters."""
        known = self._records.get(record.trial_id)
        is_on = known is not None and known.outcome == "running"  # it waited, or was lost
        self._show(record, "" if is_on else f"started  {format_params(record.params)}")

    def trial_progressed(self, record: TrialRecord) -> None:
        """Move the bar, or print what is new if the last line about this trial is a minute old."""
        if not record.progress:  # it goes back to its last checkpoint
            self._show(record, "")
            return
        loss, rate = (record.progress[name][-1] for name in (TRAIN_LOSS, RATE))
        text = f"{self._step(record)}  loss {loss:.3g}  {rate:,.0f} images/s"
        at, last = self._printed.get(record.trial_id, (0.0, ""))
        is_due = text != last and self._clock() - at >= LINE_SECONDS
        self._show(record, text if is_due else "")

    def trial_reported(self, record: TrialRecord) -> None:
        """Move the bar, or print a line; a trial that lost its node repeats earlier steps."""
        if record.outcome != "running":  # the report at which it is pruned
            self.trial_ended(record)
            return
        known = self._records.get(record.trial_id)
        again = known is not None and known.step >= record.step
        self._show(record, f"{'repeats ' * again}{self._step(record)}{_accuracies(record)}")

    def trial_ended(self, record: TrialRecord) -> None:
        """Print how the trial ended."""
        known = self._records.get(record.trial_id)
        # A resume brings the ends of earlier sessions again, before anything runs.
        is_news = known is not None and known.outcome == "running"
        self._is_ending |= is_news and record.outcome == "stopped"
        text = f"{record.reason or record.outcome}  {self._step(record)}"
        text += _accuracies(record) if record.outcome == "finished" else ""
        text += f"  in {took}" if (took := format_seconds(record.seconds)) else ""
        self._show(record, f"{text}  {record.error_line}".rstrip() if is_news else "")

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Show all trials once more and close the display."""
        self._is_ending = True
        self._records = {record.trial_id: record.compact for record in records}
        self._update_whole()
        self.close()

    def _show(self, record: TrialRecord, text: str) -> None:
        """Note a record, and show it: by its bar and above all bars, or as a line of a log."""
        self._records[record.trial_id] = record.compact
        if self._bars is None:
            if text:
                self._print(record, text)
        elif record.outcome == "running":
            self._move(record, self._bars)
        else:
            if record.trial_id in self._tasks:
                self._bars.remove_task(self._tasks.pop(record.trial_id))
            if text:
                self._bars.console.out(f"{record.trial_id}  {text}", highlight=False)
        self._update_whole()

    def _print(self, record: TrialRecord, text: str) -> None:
        """A line of a log; that of an end may have the pace of the search."""
        self._printed[record.trial_id] = self._clock(), text
        line = f"{record.trial_id}  {text.rstrip()}"
        if record.outcome != "running":
            line += f"  ({self._pace()})"
        # No markup, no colour, and no wrapping at the 80 columns assumed for a log file.
        self._console.out(line, highlight=False)

    def _move(self, record: TrialRecord, bars: Progress) -> None:
        name = record.trial_id
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=self._run.file.trial.steps, about="")
        loss = record.metrics.get(TRAIN_LOSS)
        if record.progress:
            loss = record.progress[TRAIN_LOSS][-1]
        about = format_params(record.params)
        if loss is not None:
            about += f"  loss {loss:.3g}"
        bars.update(self._tasks[name], completed=record.trained_steps, about=about)

    def _update_whole(self) -> None:
        if self._bars is not None:
            done = _ended(self._records.values())
            about = self._pace()
            self._bars.update(self._whole, completed=done, about=about, refresh=True)

    def _pace(self) -> str:
        """What is done and left, the best trial, and what is used of a budget."""
        run = self._run
        now = self._clock()
        records = list(self._records.values())
        texts = []
        if self._bars is None:
            texts.append(f"{_ended(records)} of {run.file.most_trials} trials done")
        used = {"hours": now - self._began, "gpu_hours": sum(r.gpu_seconds(now) for r in records)}
        budget = run.file.search.budget
        left = None if self._is_ending else seconds_left(run.file, records, now)
        if left and budget.hours is not None:
            left = min(left, max(0.0, 3600 * budget.hours - used["hours"]))
        texts += [f"about {format_seconds(left)} left"] if left else []
        if self._shows_best and (best := best_trial(run.goal, finished_trials(records))):
            texts.append(f"best {best.trial_id}{_accuracies(best, loss=False)}")
        if budget.hours is not None:
            texts.append(
                f"{format_seconds(used['hours'])} of {format_seconds(3600 * budget.hours)}"
            )
        if budget.gpu_hours is not None:
            gpu_hours = format_hours(used["gpu_hours"] / 3600)
            texts.append(f"{gpu_hours} of {budget.gpu_hours:,g} GPU-hours")
        return ", ".join(texts)

    def _step(self, record: TrialRecord) -> str:
        return f"step {record.trained_steps}/{self._run.file.trial.steps}"


def seconds_left(file: SearchFile, records: Sequence[TrialRecord], now: float) -> float | None:
    """About how long the remaining trials take: their mean time over the trials that run at once.

    The first trial waits for the start of its workers, which later ones find, so only what a trial
    took in its workers counts. None before a trial has ended.
    """
    ended = [record for record in records if record.ended_at is not None]
    lasted = [seconds for r in ended if (seconds := r.last(SECONDS) or r.seconds)]
    running = [r for r in records if r.outcome == "running"]
    if not lasted:
        return None
    begun = sum(record.kind != "reference" for record in records)
    done = sum(min(1.0, r.trained_steps / file.trial.steps) for r in running)
    waiting = max(0, file.most_trials - begun) + len(running) - done
    return fmean(lasted) * waiting / max(1, len(running))


def _ended(records: Iterable[TrialRecord]) -> int:
    return sum(record.kind != "reference" and record.is_final for record in records)


def _accuracies(record: TrialRecord, *, loss: bool = True) -> str:
    accs = {"id": record.last(ID_ACC), "ood": record.last(OOD_MEAN_ACC)}
    text = "".join(f"  {name} {acc:.1f}" for name, acc in accs.items() if acc is not None)
    value = record.last(TRAIN_LOSS) if loss else None
    return text if value is None else f"{text}  loss {value:.3g}"
