"""Requests of a search's slot to the workers that it keeps, and their answers.

A process of its own imports this module for each slot, so it imports nothing outside of the
standard library.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Request:
    """A request for the next report of a trial, which starts with the first one."""

    folder: str
    """Path or URL of the trial's checkpoints. Another folder is another trial."""
    trial: str | None
    """A `TrialConfig` as JSON. None ends the workers."""
    final_split: str | None = None
    """Evaluated once, after the last step."""
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Text of each plug-in that is a file, as the search has imported it."""
    micro_batch_size: int | None = None
    """Most images of a worker at once, if more ran out of memory before."""


END = Request("", None)


@dataclass(frozen=True)
class Reported:
    """The trial has evaluated its model."""

    metrics: Mapping[str, float]
    """Flat, with `step` among its keys."""
    train_curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Metrics of training since the last report, column by column."""
    is_last: bool = False
    """Whether the trial has done all its steps."""


@dataclass(frozen=True)
class Progressed:
    """How far the trial is, between two reports."""

    train_curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """As of `Reported`; empty before the first steps."""
    waits: bool = False
    """Whether the workers of the trial wait for a place in the cluster."""


@dataclass(frozen=True)
class Failed:
    """The trial has raised. Workers answer so where they survive it."""

    error: str
    """A summary in the first line, then a traceback."""


Answer: TypeAlias = Reported | Failed


class Withdrawn(Exception):
    """The slot does not wait for this request any more."""


class Exchange:
    """Holds one request until it is answered, or another one takes its place.

    It is an actor of Ray, in a process of its own: if workers are lost, those that replace them
    find the request that they have to answer.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._request: Request | None = None
        self._answer: Answer | None = None
        self._progress = Progressed()
        self._has_workers = False

    async def ask(self, request: Request) -> Answer:
        """Answer of the workers, once they have it. For the slot."""
        async with self._changed:
            self._request, self._answer, self._progress = request, None, Progressed()
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._answer is not None)
            assert self._answer is not None
            return self._answer

    async def next_request(self) -> Request:
        """The request that is not answered, once there is one. For the first worker."""
        async with self._changed:
            self._has_workers = True
            await self._changed.wait_for(lambda: self._request is not None)
            assert self._request is not None
            return self._request

    async def answer(self, request: Request, answer: Answer) -> None:
        """Pass the answer to the slot, unless it has asked for something else in the meantime."""
        async with self._changed:
            if request == self._request:
                self._request, self._answer = None, answer
                self._changed.notify_all()

    async def set_progress(
        self, request: Request, train_curve: Mapping[str, Sequence[float]]
    ) -> bool:
        """Note the training curve since the last report; whether the slot waits for the request.

        For the first worker.
        """
        if request != self._request:
            return False
        self._progress = Progressed(train_curve)
        return True

    async def progress(self) -> Progressed:
        """What the workers have noted since the request. For the slot."""
        return self._progress if self._has_workers else Progressed(waits=True)
