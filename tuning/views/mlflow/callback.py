"""The search in MLflow: one parent run for each search, one child run for each trial.

The zero-shot model and the trainings of `confirm` are child runs, too. The metrics are
`view.main_metrics`, or all with `search.tracking.metrics: all`; `confirm` adds those of the test
splits, and MLflow shows their means over the seeds if runs are grouped by the tag `confirms`. The
parent has report, tables, resolved configuration and environment as artifacts.

A thread follows the journal and writes what is new every few seconds, so that the search never
waits for MLflow. What MLflow lacks when the search ends is written by a resume, or by
`lipsum-tune report`, by the same code.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from trainers.redact import redact
from tuning.runs.callbacks import Callback
from tuning.runs.journal import JOURNAL_FILE, is_running, read_history
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.runs.run_folder import CONFIRM_FOLDER, LoadedRun
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.writer import Writer

_log = logging.getLogger(__name__)
_PATIENCE_S = 30.0
"""How long the end of a search waits for a server that accepts nothing: longer than one request may
take to fail. Ctrl-C ends the wait."""


class MlflowCallback(Callback):
    """Writes a search to MLflow while it runs, and continues its runs after a resume.

    Args:
        uri, confirms: see `Writer`.
        interval_seconds: between two writes, and between two attempts if the server is away.
    """

    def __init__(
        self, uri: str, confirms: str | None = None, interval_seconds: float = 5.0
    ) -> None:
        self._uri, self._confirms, self._interval = uri, confirms, interval_seconds
        self._brief = contextlib.ExitStack()
        self._is_over, self.is_complete = threading.Event(), threading.Event()
        """The search has ended, and MLflow has all of it."""
        self._gives_up = threading.Event()

    def search_started(self, search: SearchRecord) -> None:
        """Connect, and start to follow the journal.

        Raises:
            TrackingError: within seconds, if MLflow cannot be used. A confirmation goes on without.
        """
        self._writer = Writer(search, self._uri, self._confirms)
        if self._confirms is None:
            mlf.connect(self._uri, self._writer.experiment)
        # For the whole search, not around each write: a thread must not change the environment
        # while another one reads it.
        self._brief.enter_context(mlf.brief_requests())
        # A daemon: a process that ends does not wait for a request that hangs.
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Let the thread write the rest. Waits for MLflow, but only seconds if it is away."""
        self._is_over.set()
        with self._brief:
            with contextlib.suppress(KeyboardInterrupt):
                before = -1
                while self._writer.num_written > before:
                    before = self._writer.num_written
                    if self.is_complete.wait(_PATIENCE_S):
                        return
            # Later attempts of the thread would print MLflow's pages of errors. One that hangs
            # prints none.
            self._gives_up.set()
            self._thread.join(timeout=1.0)
        _log.warning(
            "MLflow at %s lacks a part. Nothing is lost: once it answers, `lipsum-tune report` of "
            "this run adds it.",
            redact(self._uri),
        )

    def _follow(self) -> None:
        where, is_away = redact(self._uri), False
        while not self.is_complete.is_set() and not self._gives_up.is_set():
            is_over = self._is_over.wait(self._interval)
            try:
                self._writer.send(is_over)
            except Exception as error:
                if not is_away:
                    reason = mlf.reason_of(error, self._uri)
                    what = "does not answer or refuses a write, and gets it later"
                    _log.warning("MLflow at %s %s: %s", where, what, reason)
                is_away = True
                time.sleep(min(self._interval, 1.0))
                continue
            if is_away:
                _log.warning("MLflow at %s answers again and has everything.", where)
                is_away = False
            if is_over:
                self.is_complete.set()


def backfill(run: LoadedRun) -> str:
    """Write everything that MLflow lacks of a search and of its confirmation.

    Not while a driver runs one of them, which does so itself. Runs that a killed driver left
    RUNNING are closed; a resume reopens them.

    Returns:
        What MLflow has now, in one line.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    search, uri = run.search, mlf.tracking_uri(run.file.search.tracking.uri, run.folder.parent)
    where, database = redact(uri), mlf.sqlite_path(uri)
    if database is not None and not database.is_file():
        return f"{where} is not here"  # the run folder was moved, or never had one
    writers = {run.folder: Writer(search, uri)}
    again = run.folder / CONFIRM_FOLDER
    if (again / JOURNAL_FILE).is_file():
        training = replace(search, run_folder=again, run_id=read_history(again).run_id)
        writers[again] = Writer(training, uri, confirms=search.run_id)
    with mlf.brief_requests():
        try:
            for folder, writer in writers.items():
                if not is_running(folder):
                    writer.send(is_over=True)
        except mlf.TrackingError:
            raise
        except Exception as error:
            return f"{where} lacks a part of it; repeat this later ({mlf.reason_of(error, uri)})"
    return f"{where} has all of it"
