"""The search in MLflow: one parent run for each search, one child run for each trial.

| run | tags | metrics |
|---|---|---|
| parent, named as the search | run_folder, kind, outcome, best/*, source | best/* |
| child `zero-shot` | trial_id, kind, method, outcome | before any step |
| child, named by its parameters | trial_id, kind, method, outcome, error | reports |

Each run has the tags `search` and `search_id`. The metrics are `view.main_metrics`, or all with
`search.tracking.metrics: all`. Statuses: FINISHED, also of a pruned trial; KILLED for stopped;
FAILED. The parent has report, tables, resolved configuration and environment as artifacts.

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

from trainers.redact import redact
from tuning.runs.callbacks import Callback
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.runs.run_folder import LoadedRun
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import sqlite_path, tracking_uri
from tuning.views.mlflow.writer import Writer

_log = logging.getLogger(__name__)
_PATIENCE_S, _PATIENCE_STOPPED_S = 30.0, 10.0
"""How long the end of a search waits for a server that accepts nothing; the latter if the user has
stopped it. Longer than one request may take to fail."""


class MlflowCallback(Callback):
    """Writes a search to MLflow while it runs, and continues its runs after a resume.

    Args:
        uri, experiment, all_metrics, below: see `Writer`.
        interval_seconds: between two writes, and between two attempts if the server is away.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        all_metrics: bool = False,
        interval_seconds: float = 5.0,
        below: str | None = None,
    ) -> None:
        self._uri, self._interval = uri, interval_seconds
        self._options = experiment, all_metrics, below
        self._brief = contextlib.ExitStack()
        self._is_over, self._is_complete = threading.Event(), threading.Event()

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has all of the search, which has ended."""
        return self._is_complete.is_set()

    def search_started(self, search: SearchRecord) -> None:
        """Connect, and start to follow the journal.

        Raises:
            TrackingError: within seconds, if MLflow cannot be used.
        """
        mlf.connect(self._uri, self._options[0])
        self._search, self._writer = search, Writer(search, self._uri, *self._options)
        # For the whole search, not around each write: a thread must not change the environment
        # while another one reads it.
        self._brief.enter_context(mlf.brief_requests())
        # A daemon: a process that ends does not wait for a request that hangs.
        threading.Thread(target=self._follow, name="mlflow", daemon=True).start()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Let the thread write the rest. Waits for MLflow, but only seconds if it is away."""
        self._is_over.set()
        patience = _PATIENCE_STOPPED_S if outcome == "stopped" else _PATIENCE_S
        with self._brief, contextlib.suppress(KeyboardInterrupt):
            before = -1
            while self._writer.num_written > before:
                before = self._writer.num_written
                if self._is_complete.wait(patience):
                    return
        _log.warning(
            "MLflow at %s lacks a part of this search. Nothing is lost: once it answers, "
            "`lipsum-tune report %s` adds it.",
            redact(self._uri),
            self._search.run_folder,
        )

    def _follow(self) -> None:
        where, is_away = redact(self._uri), False
        while not self.is_complete:
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
                self._is_complete.set()


def backfill(run: LoadedRun) -> str:
    """Write everything that MLflow lacks of a search that no driver runs at present.

    Runs that a killed driver left RUNNING are closed; a resume of the search reopens them.

    Returns:
        What MLflow has now, in one line.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    uri = tracking_uri(run.file.search.tracking.uri, run.folder.parent)
    where, tracking = redact(uri), run.file.search.tracking
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        return f"{where} is not here"  # the run folder was moved, or never had one
    writer = Writer(run.search, uri, tracking.experiment, tracking.metrics == "all")
    with mlf.brief_requests():
        try:
            writer.send(is_over=True)
        except mlf.TrackingError:
            raise
        except Exception as error:
            return f"{where} lacks a part of it; repeat this later ({mlf.reason_of(error, uri)})"
    return f"{where} has all of it"
