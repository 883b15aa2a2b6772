"""The follower: one thread that brings the views of a run up to date while its search goes on.

A view is made of a `Run` alone, so it can be made again at any time: MLflow, the study of the
dashboard, tables and page. The same thread removes weights that are no longer needed, see
`tuning.checkpoints`. The search waits for none of them. A view that fails gets what it lacks later;
at the end of the search, all get some time for that. What is still missing then is added by a
resume, and by `lipsum-tune report`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from threading import Thread

from trainers.errors import ConfigError, first_line
from trainers.redact import redact, traceback_of
from tuning.checkpoints import KeptWeights
from tuning.log.callbacks import Callback
from tuning.log.journal import Journal
from tuning.log.records import SearchOutcome, TrialRecord
from tuning.run import Run, RunReader

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long the end of a search waits for its views. Ctrl-C ends the wait."""
LAST_WRITE_S = 5.0
"""How long it then waits for a write that has begun, within which no view is closed."""


class View:
    """Base class of everything that is made of a run.

    The thread of the search calls `start` and `close`, that of the follower all other methods. A
    `write` that hangs may still run when `close` comes.

    A view writes all of itself anew, or adds what it lacks. It may get the same run twice.
    """

    name: str
    """What the log calls it."""
    seconds: float = 0.0
    """Shortest time between two updates."""

    def start(self, run: Run) -> None:
        """Prepare. An exception here ends the search before anything runs."""

    def write(self, run: Run) -> None:
        """Bring the view up to date. After an exception it is called again."""

    def close(self) -> None:
        """The search has ended. Not called if `start` has raised."""


class Follower(Callback):
    """Reads the journal of a search and gives what is new to its views in turn.

    Args:
        views: in this order; one that may hang is best the last.
        journal: of the driver, of which lines are read once they are synced; None without a driver.
        weights: of trials, from which those go that are no longer needed.
        tick: seconds between two looks at the journal.
    """

    def __init__(
        self,
        views: Sequence[View],
        journal: Journal | None = None,
        weights: KeptWeights | None = None,
        tick: float = 1.0,
    ) -> None:
        self._views = views
        self._weights = weights
        self._journal = journal
        self._tick = tick
        self._is_over, self._gives_up = threading.Event(), threading.Event()
        self._due: dict[View, float] = {}
        self._behind: set[View] = set()  # those that have not written the last event
        self.lacks: dict[View, str] = {}
        """Why a view lacks a part."""
        self._unread = ""
        self._is_decided = False  # which weights stay after the last event

    def search_started(self, run: Run) -> None:
        """Start the views, then the thread."""
        with ExitStack() as stack:
            for view in self._views:
                view.start(run)
                stack.callback(view.close)
            self._open_views = stack.pop_all()
        self.read(run)
        # A daemon: a process that ends does not wait for a request that hangs.
        self._thread = Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Wait for the views, and name those that lack a part."""
        self._is_over.set()
        was_told = self._gives_up.is_set()
        with self._open_views, suppress(KeyboardInterrupt):
            self._thread.join(PATIENCE_S)
            self._gives_up.set()
            self._thread.join(LAST_WRITE_S)
        self._gives_up.set()
        if not was_told:  # the end of a session may be told twice
            lacking = {*self._behind, *self.lacks}
            if behind := [view.name for view in self._views if view in lacking]:
                said = "%s: not up to date. Nothing is lost: `lipsum-tune report` completes it"
                logger.warning(said, ", ".join(behind))

    def read(self, run: Run) -> None:
        """Begin to read its folder."""
        self._reader = RunReader(run.folder, run.file, self._journal)
        self._behind = {*self._views}
        self._due = {view: time.monotonic() + view.seconds for view in self._views}

    def turn(self, is_over: bool = False) -> None:
        """Read what is new, and update the views that are due; all if the search is over."""
        if self._reader.is_new():
            self._behind = {*self._views}
            self._is_decided = False
        now = time.monotonic()
        due = [v for v in self._views if v in self._behind and (is_over or now >= self._due[v])]
        if not due and self._is_decided and not is_over:
            return
        run = self._reader.run(is_live=not is_over)
        if self._weights is not None:
            self._weights.update(run)
        self._is_decided = True
        for view in due:
            try:
                view.write(run)
                self._behind.discard(view)
                self.lacks.pop(view, None)
            except Exception as error:
                self._fail(view, error)
            self._due[view] = time.monotonic() + view.seconds

    def _fail(self, view: View, error: Exception) -> None:
        reason = in_one_line(error)
        if self.lacks.get(view) != reason:
            said = "%s cannot be written now: %s; `lipsum-tune report` completes it"
            logger.warning(said, view.name, reason)
            logger.debug("%s", traceback_of(error))
        self.lacks[view] = reason

    def _follow(self) -> None:
        while not self._is_over.wait(self._tick):
            self._try_turn()
        self._behind = {*self._views}  # some change when a search ends
        self._try_turn(is_over=True)
        while self._behind and not self._gives_up.wait(self._tick):
            self._try_turn(is_over=True)

    def _try_turn(self, is_over: bool = False) -> None:
        """A turn. A journal that cannot be read, which is logged once, may be readable later."""
        try:
            self.turn(is_over)
            self._unread = ""
        except Exception as error:
            if self._unread != (reason := in_one_line(error)):
                logger.warning("the views of the search cannot be written now: %s", reason)
            self._unread = reason


def in_one_line(error: Exception) -> str:
    """An error in one line without secrets."""
    if isinstance(error, ConfigError):
        return redact(first_line(error))
    return redact(f"{type(error).__name__}: {first_line(error)}")


def complete(run: Run, views: Sequence[View]) -> dict[View, str]:
    """Bring the views of a run that no driver runs up to date, once.

    Returns:
        Why a view lacks a part, for those that do.
    """
    lacks, usable = dict[View, str](), list[View]()
    with ExitStack() as stack:
        for view in views:
            try:
                view.start(run)
            except Exception as error:
                lacks[view] = in_one_line(error)
                continue
            stack.callback(view.close)
            usable.append(view)
        follower = Follower(usable)
        follower.read(run)
        follower.turn(is_over=True)
    return lacks | follower.lacks
