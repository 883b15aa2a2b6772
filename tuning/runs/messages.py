"""Messages about a trial, from the process that trains it to the driver of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


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
class SteppedBack:
    """The trial goes back to its newest checkpoint, because a machine failed."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The trial has raised."""

    error: str
    """A summary in the first line, then a traceback."""
    notice: str = ""
    """For the log."""


@dataclass(frozen=True)
class Ended:
    """The process of the trial has no more messages."""


Message: TypeAlias = Reported | Progressed | SteppedBack | Failed | Ended

MESSAGE = "message"
"""Key of a message in a result of Ray Tune. The metrics of a report stand beside it."""
