"""Ends a process in which a training hangs, with the stacks of its threads in its log."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_after_s: float | None = None


@contextmanager
def ends_if_it_hangs(after_s: float) -> Iterator[None]:
    """Within the block, this process ends if `alive` is called, and for so long not again.

    The clock is a thread in C, which also sees a hang that keeps Python's lock. The standard error
    of a worker is a file among Ray's logs of its node.
    """
    global _after_s
    _after_s = after_s
    try:
        yield
    finally:
        pause()
        _after_s = None


def alive() -> None:
    """Start the clock of the next training step or batch of an evaluation."""
    if _after_s is not None:
        faulthandler.dump_traceback_later(_after_s, exit=True, file=_STDERR)


def pause() -> None:
    """Stop the clock, since something follows that may take long, such as a compilation."""
    if _after_s is not None:
        faulthandler.cancel_dump_traceback_later()
