"""The follower: one thread that brings the views of a run up to date while its search goes on.

A view is made of the journal alone, so it can be made again at any time: MLflow, the study of the
dashboard, tables and page, and which checkpoints are on the disk. The search waits for none of
them. A view that fails gets what it lacks later; at the end of the search, all get some time for
that. What is still missing then is added by a resume, and by `lipsum-tune report`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from threading import Thread

from trainers.errors import StorageFailed, first_line
from trainers.redact import redact, traceback_of
from tuning.runs.callbacks import Callback
from tuning.runs.history import Event, History, JournalReader, Replay
from tuning.runs.journal import Journal
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""How long the end of a search waits for views of which none gets on: longer than one request to a
server may take to fail. Ctrl-C ends the wait."""


class View:
    """Base class of everything that is made of a journal. One thread calls all methods but `start`.

    The folder of checkpoints is one: which are on the disk follows from the journal. A view writes
    all of itself anew, or adds what it lacks. It may get the same record twice.
    """

    name: str
    """What the log calls it."""
    seconds: float = 0.0
    """Shortest time between two updates."""
    expected: tuple[type[Exception], ...] = (StorageFailed, OSError)
    """Errors that the log tells without a traceback."""
    behind = "lacks a part. Nothing is lost: `lipsum-tune report` of this run adds it"
    """What the log says of it if a search ends before it is up to date."""
    num_written = 0
    """It grows while an update gets on."""

    def start(self, search: SearchRecord) -> None:
        """Prepare. An exception here ends the search before anything runs."""
        self._search = search

    def take(self, event: Event, record: TrialRecord | None) -> None:
        """Learn of an event, in the order of the journal, with the record of its trial after it."""

    def write(self, history: History, is_over: bool) -> None:
        """Bring the view up to date. After an exception it is called again.

        Args:
            is_over: no driver runs the search any more.
        """

    def close(self) -> None:
        """The search has ended. Not called if `start` has raised."""

    def reason(self, error: Exception) -> str:
        """An error in one line without secrets."""
        return redact(f"{type(error).__name__}: {first_line(error)}")


class Follower(Callback):
    """Reads the journal of a search and gives what is new to its views in turn.

    Args:
        views: in this order; one that may hang is best the last.
        journal: of the driver, of which lines are read once they are synced; None without a driver.
        tick: seconds between two looks at the journal.
    """

    def __init__(
        self, views: Sequence[View], journal: Journal | None = None, tick: float = 1.0
    ) -> None:
        self._views, self._journal, self._tick = views, journal, tick
        self._is_over, self._gives_up = threading.Event(), threading.Event()
        self._behind: set[View] = set()  # those that lack a part
        self._due: dict[View, float] = {}
        self.errors: dict[View, Exception] = {}
        """Why the last update of a view failed."""
        self._told: set[View] = set()
        self._is_unread = False  # the last turn has failed

    def search_started(self, search: SearchRecord) -> None:
        """Start the views, then the thread.

        Raises:
            ConfigError: a view cannot be used.
        """
        with ExitStack() as stack:
            for view in self._views:
                view.start(search)
                stack.callback(view.close)
            self._open_views = stack.pop_all()
        self._read(search)
        # A daemon: a process that ends does not wait for a request that hangs.
        self._thread = Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Wait for the views as long as they get on."""
        self._is_over.set()
        with self._open_views, suppress(KeyboardInterrupt):
            before = -1
            while (now := sum(view.num_written for view in self._views)) > before:
                before = now
                self._thread.join(PATIENCE_S)
                if not self._thread.is_alive():
                    break
        if not self._gives_up.is_set():  # the end of a session may be told twice
            self._gives_up.set()
            for view in self._views:
                if view in self._behind:
                    logger.warning("%s %s.", view.name, view.behind)

    def turn(self, is_over: bool = False) -> None:
        """Read what is new, and update the views that are due; all of them if the search is over.

        Raises:
            ConfigError: the journal cannot be read.
        """
        # A view that saw a line which is cut off again could remove what a resume needs.
        until = None if self._journal is None else self._journal.synced
        for event in self._reader.events(until):
            if not self._reader.give(self._replay, event) or event["event"] == "alive":
                continue
            self._behind = {*self._views}
            record = self._replay.records.get(event.get("trial", ""))
            for view in self._views:
                view.take(event, record)
        now = time.monotonic()
        due = [v for v in self._views if v in self._behind and (is_over or now >= self._due[v])]
        if not due:
            return
        history = self._replay.history(live=not is_over)
        for view in due:
            try:
                view.write(history, is_over)
                self._behind.discard(view)
                self.errors.pop(view, None)
            except Exception as error:
                self.errors[view] = error
            self._due[view] = time.monotonic() + view.seconds

    def _read(self, search: SearchRecord) -> None:
        self._reader, self._replay = JournalReader(search.run_folder), Replay()
        self._behind = {*self._views}
        self._due = {view: time.monotonic() + view.seconds for view in self._views}

    def _follow(self) -> None:
        while not self._is_over.wait(self._tick):
            self._try_turn()
        self._behind = {*self._views}  # some change when a search ends
        pause = 0.0
        while self._behind and not self._gives_up.wait(pause):
            self._try_turn(is_over=True)
            pause = self._tick

    def _try_turn(self, is_over: bool = False) -> None:
        """A turn. A journal that cannot be read, which is logged once, may be readable later."""
        try:
            self.turn(is_over)
            self._is_unread = False
        except Exception as error:
            if not self._is_unread:
                what = "the views of the search cannot be written, and get this later"
                logger.error("%s\n%s", what, traceback_of(error))
            self._is_unread = True
        self._tell()

    def _tell(self) -> None:
        for view in self._told - self.errors.keys():
            logger.warning("%s can be written again and has everything.", view.name)
        for view in self.errors.keys() - self._told:
            error, what = self.errors[view], "cannot be written, and gets this later"
            trace = "" if isinstance(error, view.expected) else f"\n{traceback_of(error)}"
            logger.warning("%s %s: %s%s", view.name, what, view.reason(error), trace)
        self._told = {*self.errors}


def complete(search: SearchRecord, views: Sequence[View]) -> dict[View, str]:
    """Bring the views of a run that no driver runs up to date, once.

    Returns:
        Why a view lacks a part, for those that do.
    """
    lacks, usable = dict[View, str](), list[View]()
    with ExitStack() as stack:
        for view in views:
            try:
                view.start(search)
            except Exception as error:
                lacks[view] = view.reason(error)
                continue
            stack.callback(view.close)
            usable.append(view)
        follower = Follower(usable)
        follower._read(search)
        follower.turn(is_over=True)
    return lacks | {view: view.reason(error) for view, error in follower.errors.items()}
