"""The journal of a run folder: every event of a search, one line of JSON each.

The journal is the source of truth. Optuna studies, tables, MLflow and a resumed search are derived
from it. A line is written and synced to disk before anything else learns of the event, and is never
changed, so after any kill the journal is correct up to its last complete line. Only the pruner sees
a report earlier, since the end that it decides on is part of the same write. An incomplete last
line is cut off when the journal is opened again. If a line cannot be written (disk full), nothing
more is written in that session: later events would depend on one that is not recorded. A report
that a killed driver did not write comes again: a trial is at most one report ahead, and repeats its
last one when it is resumed.

A driver refuses a journal of which lines were damaged, because its search would go on from other
trials than there were. `tuning.log.history` reads journals.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError, StorageFailed, storage_failures, system_words
from trainers.folders import private_lock
from tuning.log.history import (
    FORMAT,
    Event,
    History,
    JournalReader,
    line_of,
    read_history,
)
from tuning.log.paths import JOURNAL_FILE
from tuning.log.records import TRAIN_CURVE, SearchOutcome, TrialRecord

LOCK_FILE = "journal.lock"
"""Locked by the driver, and opened only by those who may write the journal: a lock on the journal
could be taken by whoever may read it, and would keep its owner from resuming the search."""
HEARTBEAT_SECONDS = 30.0
"""Longest time of a killed session that can be missing from the budgets."""
_ATTEMPTS, _PAUSE_S = 5, 0.1
"""Number of attempts to lock the journal, and seconds between them. `is_running` of another process
holds a lock for a moment."""
_LOCKED = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})
"""`errno` of flock if another process holds the lock. Others mean that locks are not supported."""


class Journal:
    """The journal of one run folder, opened and locked by the driver of its search.

    Raises:
        StorageFailed: from the constructor and from every method that writes.
    """

    def __init__(self, run_folder: Path) -> None:
        path = self._path = run_folder / JOURNAL_FILE
        self.failure: StorageFailed | None = None
        """Why the journal stopped being written; None if all was written."""
        self.in_session = False
        """Whether a session has begun since it was opened."""
        self._lock = _locked(run_folder)
        with storage_failures(path, "cannot be opened"):
            self._file = path.open("ab+", buffering=0)
        self._writing = threading.Lock()  # a thread that waits for a lost Ray may write late
        self._last_write = 0.0
        self._lines = self._size = 0  # of the file after the last write
        self._reader = JournalReader(run_folder, whole=True)
        self.trial_events: list[tuple[str, TrialRecord]] = []
        """Each start, report and end of a trial in earlier sessions, with its record after that."""
        try:
            for event in self._reader.events():
                if event["event"] in ("started", "report", "ended"):
                    record = self._reader.replay.records[event["trial"]]
                    self.trial_events.append((event["event"], record))
        except ConfigError:
            self.close()
            raise
        found = self._reader.history()
        cut_torn_line(path)
        self.synced = path.stat().st_size
        """Bytes of the file that stay there. A line that could not be synced is cut off again."""
        # A session goes on after the one before it, also if the clock was set back meanwhile.
        self._clock_offset = max(time.time(), self._reader.replay.last) - time.monotonic()
        self.run_id = found.run_id or secrets.token_hex(4)
        if not found.run_id:
            self._append({"event": "created", "format": FORMAT, "id": self.run_id})

    def history(self, live: bool = False) -> History:
        """What the file contains. It was read when it was opened; later, what is new is read.

        Args:
            live: see `JournalReader.history`.
        """
        return self._reader.read(live)

    def reader(self) -> JournalReader:
        """A reader that goes on where this one stands."""
        return self._reader.copy()

    def now(self) -> float:
        """Unix time in seconds. It never goes back, whatever happens to the clock."""
        return self._clock_offset + time.monotonic()

    def session_started(
        self,
        fingerprints: Mapping[str, str],
        objects: Mapping[str, str] | None = None,
        *,
        chosen: Sequence[str] = (),
        seeds: int = 0,
        model: int = 0,
    ) -> None:
        """A driver starts or resumes a search with these `History.fingerprints` and `objects`.

        Args:
            chosen: IDs of the trials that `confirm` trains again, without FT.
            seeds: with so many seeds each.
            model: number of the model that it tests; 0 for none.
        """
        started = {"event": "session", "id": self.run_id, "fingerprints": dict(fingerprints)}
        seldom = {"chosen": list(chosen), "seeds": seeds, "model": model, "objects": objects}
        self._append(started | {key: value for key, value in seldom.items() if value})
        self.in_session = True

    def used_ood(self) -> None:
        """This session or a run of `search.warm_start` uses OOD validation data."""
        self._append({"event": "used_ood"})

    def zero_shot(self, metrics: Mapping[str, float]) -> None:
        """The zero-shot model was evaluated."""
        self._append({"event": "zero_shot", "metrics": dict(metrics)})

    def trial_started(self, record: TrialRecord) -> list[Event]:
        """An attempt of a trial begins."""
        start: Event = {
            "time": record.started_at,
            "event": "started",
            "trial": record.trial_id,
            "kind": record.kind,
            "number": record.number,
            "params": dict(record.params),
            "gpus": record.gpus,
        }
        seldom = {
            "first_point": record.is_first_point,
            "labels": list(record.labels),
        }
        return self._append(start | {key: value for key, value in seldom.items() if value})

    def trial_reported(
        self, record: TrialRecord, train_curve: Mapping[str, Sequence[float]] | None = None
    ) -> list[Event]:
        """The last report of the curve, and the end of the trial if it ended with that report.

        Args:
            train_curve: the part of the training curve that ends with the report.
        """
        report = {"event": "report", "trial": record.trial_id, "report": dict(record.metrics)}
        if train_curve:
            report[TRAIN_CURVE] = dict(train_curve)
        # Both lines are one write. If a kill left the report without the end of a pruned trial, a
        # resume would continue that trial.
        ended = record.outcome != "running"
        return self._append(report, *([_end_of(record)] if ended else ()))

    def controlled(self, order: Mapping[str, Any], name: str) -> None:
        """The user has steered the search. See `tuning.log.orders`."""
        self._append({"event": "control", "order": dict(order), "name": name})

    def model(self, event: Event) -> None:
        """A model was chosen, or tested. See `tuning.results.model`."""
        self._append(dict(event))

    def trial_ended(self, record: TrialRecord) -> list[Event]:
        """An attempt of a trial ended."""
        return self._append(_end_of(record))

    def alive(self) -> None:
        """Write a heartbeat, unless something was written in the last HEARTBEAT_SECONDS."""
        if self.now() - self._last_write > HEARTBEAT_SECONDS:
            self._append({"event": "alive"})

    def session_ended(self, outcome: SearchOutcome, reason: str = "") -> list[Event]:
        """The driver ends in order, for instance as a budget is used up."""
        reasons = {"reason": reason} if reason else {}
        return self._append({"event": "session_ended", "outcome": outcome, **reasons})

    def close(self) -> None:
        """Close the file and release the lock."""
        self._file.close()
        self._lock.close()

    def _append(self, *events: Event) -> list[Event]:
        """Write events in one piece, and return them. One without a time of its own happens now."""
        with self._writing:
            self._last_write = now = self.now()
            written = [{"time": event.pop("time", None) or now, **event} for event in events]
            if self.failure is not None:
                # A new exception: raising the old one while it is handled would change its context.
                raise StorageFailed(str(self.failure))
            try:
                with storage_failures(self._path, "cannot be written"):
                    size = os.fstat(self._file.fileno()).st_size
                    if size != self._size:  # just opened, or a signal came right after a write
                        self._lines, self._size = self._path.read_bytes().count(b"\n"), size
                    content = b"".join(
                        line_of(event, number)
                        for number, event in enumerate(written, self._lines + 1)
                    )
                    append_synced(self._file, content)
            except StorageFailed as error:
                self.failure = error
                raise
            self._lines, self._size = self._lines + len(events), size + len(content)
            self.synced = self._size
        return written


def _end_of(record: TrialRecord) -> Event:
    end = {"outcome": record.outcome, "error": record.error}
    end |= {"reason": record.reason} if record.reason else {}
    return {"time": record.ended_at, "event": "ended", "trial": record.trial_id, **end}


def is_running(run_folder: Path) -> bool:
    """Whether a driver has the journal open, on any machine that shares locks with this one.

    To those who may not lock it, a session without an end is one that runs.
    """
    path = run_folder / LOCK_FILE
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except PermissionError:
        return read_history(run_folder).outcome is None
    except OSError as error:
        if error.errno in _LOCKED:
            return True
        raise _no_locks(path, error) from None
    return False


def _locked(run_folder: Path) -> FileIO:
    """The lock file of a run folder, locked."""
    path = run_folder / LOCK_FILE
    with storage_failures(path, "cannot be opened"):
        file = private_lock(path)
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            is_locked = error.errno in _LOCKED
            if is_locked and attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE_S)
                continue
            file.close()
            taken = ConfigError(f"{path.parent}: another process is running this search")
            raise (taken if is_locked else _no_locks(path, error)) from None
    return file


def append_synced(file: FileIO, content: bytes) -> None:
    """Append all of the content, or nothing, and wait until it is on disk.

    Raises:
        OSError: it could not be written. The file is cut to its former size if possible.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[file.write(remaining) :]
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)  # the next line must not continue half a line
        raise


def cut_torn_line(path: Path) -> None:
    """Cut off an incomplete last line, so that the next one starts on its own."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)


def _no_locks(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot be locked ({system_words(error)}), so two processes could damage it",
        source=path,
        hint="use a file system that supports locks; Lustre: mount option flock",
    )
