"""Requests of a search's slot to the workers that it keeps, their answers, and their clock.

A process of its own imports this module for each slot, so it imports nothing outside of the
standard library.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A request for the next report of a trial, which starts with the first one."""

    folder: str
    """Path or URL of the trial's checkpoints. Another folder is another trial."""
    trial: str | None
    """A `TrialConfig` as JSON. None ends the workers."""
    final_split: str | None = None
    """Evaluated once, after the last step."""


END = Request("", None)


@dataclass(frozen=True)
class Answer:
    """A report, the end of a trial that left the workers as they were, or how far a trial is."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Empty if the trial has not reported yet, or has diverged."""
    train_curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Metrics of training since the last report, column by column."""
    diverged: str | None = None
    """Message of the `TrainingDiverged` that ended the trial."""
    seconds: float = 0.0
    """Time from the start of training, or from the request, to this answer."""


class Exchange:
    """Holds one request until it is answered.

    It is an actor of Ray, in a process of its own: if workers are lost, those that replace them
    find the request that they have to answer.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._request: Request | None = None
        self._answer: Answer | None = None
        self._began: float | None = None
        self._worker = b""
        self._progress = Answer()

    async def ask(self, request: Request) -> Answer:
        """Answer of the workers, once they have it. For the slot."""
        async with self._changed:
            self._request, self._answer, self._began = request, None, None
            self._progress = Answer()
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._answer is not None)
            assert self._answer is not None
            return self._answer

    async def next_request(self) -> Request:
        """The request that is not answered, once there is one. For the first worker."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._request is not None)
            assert self._request is not None
            self._began = None  # if workers were replaced, the clock starts again with `training`
            return self._request

    async def training(self, worker: bytes) -> None:
        """Start the clock of the next report: everything that it needs is on this machine.

        `worker` is the pickled handle of the first worker.
        """
        self._began, self._worker = time.monotonic(), worker

    async def lost(self, worker: bytes) -> None:
        """Stop the clock of a worker that is gone. `training` of its replacement starts it."""
        if self._worker == worker:
            self._began = None

    async def waits(self) -> bool:
        """Whether the requested report has no worker yet that trains it."""
        return self._began is None

    async def answer(self, answer: Answer) -> None:
        """Pass the answer to the slot, which may have asked the workers to end in the meantime."""
        async with self._changed:
            if self._request != END:
                self._request = None
            self._answer, self._began = answer, None
            self._changed.notify_all()

    async def set_progress(self, train_curve: Mapping[str, Sequence[float]]) -> None:
        """Note the training curve since the last report. For the first worker."""
        self._progress = Answer(train_curve=train_curve)

    async def progress(self) -> Answer:
        """What the workers have noted since the request. For the slot."""
        return self._progress

    async def overdue(self, limit_s: float) -> bytes | None:
        """The first worker, if it has trained for longer than the limit without a report."""
        late = self._began is not None and time.monotonic() - self._began > limit_s
        return self._worker if late else None
