"""Ends a process in which a training hangs, and keeps the stacks of its threads in a file."""

from __future__ import annotations

import faulthandler
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

_PREFIX: Final = "lipsum-tune-hang-"
_watch: tuple[float, IO[str]] | None = None


@contextmanager
def ends_if_it_hangs(after_s: float, name: str, rank: int) -> Iterator[None]:
    """Within the block, this process ends if `alive` is called, and for so long not again.

    The clock is a thread in C, which also sees a hang that keeps Python's lock.

    Args:
        name: of the workers, for `take_stacks`.
        rank: of this one among them.
    """
    global _watch
    log = Path(tempfile.gettempdir()) / f"{_PREFIX}{name}-{rank}"
    with log.open("w") as file:
        _watch = after_s, file
        try:
            yield
        finally:
            pause()
            _watch = None
            log.unlink(missing_ok=True)


def alive() -> None:
    """Start the clock of the next training step or batch of an evaluation."""
    if _watch is not None:
        after_s, file = _watch
        faulthandler.dump_traceback_later(after_s, exit=True, file=file)


def pause() -> None:
    """Stop the clock, since something follows that may take long, such as a compilation."""
    if _watch is not None:
        faulthandler.cancel_dump_traceback_later()


def take_stacks(name: str) -> str:
    """The stacks of the workers of that name that hung on this machine; their files are removed.

    Of each worker, only threads that train are shown, innermost call first.
    """
    found = []
    for log in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}{name}-*")):
        threads = log.read_text(errors="replace").split("\n\n")
        log.unlink()
        found += [thread for thread in threads if "/ray_trainer.py" in thread]
    return "\n".join(found)
