"""Messages about a trial, from the process that trains it to the driver of the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trainers.exchange import Failed as Failed
from trainers.exchange import Progressed as Progressed
from trainers.exchange import Reported as Reported


@dataclass(frozen=True)
class SteppedBack:
    """The trial goes back to its newest checkpoint, because a machine failed."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """The process of the trial has no more messages."""


Message: TypeAlias = Reported | Progressed | SteppedBack | Failed | Ended

MESSAGE = "message"
"""Key of a message in a result of Ray Tune. The metrics of a report stand beside it."""
