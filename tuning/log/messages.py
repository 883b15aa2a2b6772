"""Messages about a trial, from the process that trains it to the driver of the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from trainers.exchange import Failed as Failed
from trainers.exchange import Progressed as Progressed
from trainers.exchange import Reported as Reported


@dataclass(frozen=True)
class SteppedBack:
    """An error has ended the workers of the trial. New ones go on from its newest checkpoint."""

    error: str
    """A summary in the first line, then a traceback."""
    is_own: bool = False
    """Whether the training raised it, and not Ray."""
    is_counted: bool = True
    """Whether it counts towards `search.resources.max_failures`."""


@dataclass(frozen=True)
class Ended:
    """The process of the trial has no more messages."""


Message: TypeAlias = Reported | Progressed | SteppedBack | Failed | Ended

MESSAGE = "message"
"""Key of a message in a result of Ray Tune. The metrics of a report stand beside it."""
