"""How a preparation goes on, in the terminal: a bar of images, or a line a shard where there is
no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from trainers.data.shards import Shard, ShardReport


class Display:
    """Shows how many images are through. Use it as a context manager.

    Args:
        console: where to.
        images: how many there are in all.
    """

    def __init__(self, console: Console, images: int) -> None:
        self._console = console
        self._images, self._through, self._bad = images, 0, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("images", total=images)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def shard_ended(self, shard: Shard, report: ShardReport) -> None:
        """A longer bar, or a line."""
        self._through += len(shard.examples)
        self._bad += sum(finding.bad for finding in report.findings)
        if self._console.is_terminal:
            bad = f", {self._bad:,} bad" if self._bad else ""
            self._progress.update(
                self._task,
                completed=self._through,
                description=f"{shard.domain}/{shard.split}{bad}",
            )
            return
        done = "there already" if report.reused else "done"
        self._console.out(
            f"{shard.path}  {done}  {report.rows:,} images  "
            f"({self._through:,} of {self._images:,})",
            highlight=False,
        )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images a second of late."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")
