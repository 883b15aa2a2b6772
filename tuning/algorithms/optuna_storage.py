"""Where Optuna keeps the studies of a search: a file in the run folder, or a database."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import IntegrityError, ProgrammingError

from trainers.errors import ConfigError, first_line, storage_failures
from trainers.redact import redact
from tuning.runs.journal import append_synced, cut_torn_line
from tuning.security.databases import check_driver, expand

OPTUNA_FILE = "optuna.journal"
_ATTEMPTS = 8
"""To open a database that other searches set up at the same time."""


def open_storage(run_folder: Path, url: str | None) -> BaseStorage:
    """The storage of the studies of a search.

    Args:
        run_folder: folder of the search, whose driver holds the lock.
        url: of a database, `postgresql+psycopg://...`; None for a file in the run folder. The file
            is deleted if it is damaged, because the studies are made anew from the run's journal.

    Raises:
        ConfigError: the database cannot be used.
    """
    if url is None:
        path = run_folder / OPTUNA_FILE
        # A killed driver may leave a lock behind. The lock of the run folder makes it obsolete.
        path.with_name(f"{OPTUNA_FILE}.lock").unlink(missing_ok=True)
        if path.is_file():
            cut_torn_line(path)
        try:
            return JournalStorage(OptunaFile(path))
        except (ValueError, KeyError, TypeError, AttributeError):  # Optuna checks no line
            path.unlink()
            return JournalStorage(OptunaFile(path))
    check_driver("search.study_storage", url)
    try:
        return _open_database(expand(url))
    except Exception as error:  # of SQLAlchemy and its drivers, of many types
        hint = "Optuna needs a database of its own" if isinstance(error, RuntimeError) else None
        raise ConfigError(
            redact(f"{type(error).__name__}: {first_line(error)}", url),
            key="search.study_storage",
            value=redact(url),
            hint=hint,
        ) from None


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Within the block, Optuna logs warnings only: not every study and point."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _open_database(url: str) -> BaseStorage:
    """Open a database. If several searches find it empty, one creates the tables; the others retry.

    Optuna 5.0 has no lock for that.
    """
    for attempt in itertools.count(1):
        try:
            # Connections may be cut between two events of a search, which can be hours apart.
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):
            if attempt == _ATTEMPTS:
                raise
        time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("unreachable")


class OptunaFile(JournalFileBackend):
    """Optuna's journal file, which leaves no half line and can be written in bulk.

    The file backend of Optuna 5.0 leaves half a line if the disk is full, and syncs the file for
    every trial, which takes minutes for thousands of them.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file_lock = path, JournalFileSymlinkLock(str(path))
        self._sync = True
        super().__init__(str(path), lock_obj=self._file_lock)

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """Within the block, do not wait for the disk. The file can be made anew after a crash."""
        self._sync = False
        try:
            yield
        finally:
            self._sync = True

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write all lines, or none.

        Raises:
            StorageFailed: the disk is full, or fails.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with (
            storage_failures(self._path, "cannot be written"),
            self._locked(),
            self._path.open("ab", buffering=0) as file,
        ):
            append_synced(file, lines.encode(), sync=self._sync)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within the block, hold the lock of the file.

        If a signal interrupts acquire() or release() of Optuna 5.0, these clean up after a lock
        that may not exist, and the error of that hides the interruption.
        """
        try:
            self._file_lock.acquire()
            try:
                yield
            finally:
                self._file_lock.release()
        except (OSError, RuntimeError) as error:
            hidden: BaseException | None = error
            while hidden is not None:
                if isinstance(hidden, KeyboardInterrupt):
                    raise hidden from None
                hidden = hidden.__context__
            raise
