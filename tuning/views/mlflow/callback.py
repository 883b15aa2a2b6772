"""The search in MLflow: one parent run for each search, one child run for each trial.

| run | tags | metrics |
|---|---|---|
| parent, named as the search | run_folder, kind, outcome, best/*, source | best/* |
| child `zero-shot` | trial_id, kind, outcome | before any step |
| child, named by its parameters | trial_id, kind, method, outcome, error, nonfinite | reports |

Each run has the tags `search` and `search_id`. The metrics are `view.main_metrics`, or all with
`search.tracking.metrics: all`. The training curve has points between two reports, from a trial that
runs, too. Statuses: FINISHED, also of a pruned trial; KILLED for stopped; FAILED. Every child has
`outcome`, `kind` and `method` from the start, since a filter on a tag hides runs without it.
The best parameters are tags, not params: a resumed search may find better ones, and MLflow's params
cannot change.

The parent also has the data as inputs, with the fingerprints of the run folder, and as artifacts
report, tables, resolved configuration and environment.

Training never waits for MLflow: events note which trials have changed, and a thread brings MLflow
up to date every few seconds, and later if the server is away. What MLflow lacks when the search
ends is written by a resume, or by `lipsum-tune report`, in the same way.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trainers.redact import redact
from tuning.runs.callbacks import Callback
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.runs.run_folder import LoadedRun
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import TrackingError, sqlite_path, tracking_uri
from tuning.views.mlflow.runs import SearchRuns

_log = logging.getLogger(__name__)
_PATIENCE_S = 30.0
"""How long the end of a search waits for a server that accepts nothing."""
_PATIENCE_STOPPED_S = 10.0
"""The same if the user stopped the search; longer than one request may take to fail."""


class MlflowCallback(Callback):
    """Writes a search to MLflow while it runs, and continues its runs after a resume.

    The events of the search only note the newest record of each trial. A thread writes them through
    `SearchRuns`, which from the start of the search on is used by that thread alone.

    Args:
        uri: a database (`sqlite:////abs/mlflow.db`) or a server (`https://...`), as configured.
        experiment: its name in MLflow; created if it is missing.
        all_metrics: log everything that trials report, and not only the metrics to look at first.
        interval_seconds: between two writes, and between two attempts if the server is away.
    """

    _search: SearchRecord
    _runs: SearchRuns

    def __init__(
        self,
        uri: str,
        experiment: str,
        all_metrics: bool = False,
        interval_seconds: float = 5.0,
    ) -> None:
        self._uri = uri
        self._all_metrics = all_metrics
        self._experiment = experiment
        self._interval = interval_seconds
        self._brief = contextlib.ExitStack()
        self._changes = threading.Condition()  # guards the next six
        self._trials: dict[str, TrialRecord] = {}
        self._ending: list[Callable[[], None]] = []  # what remains to be done after the trials
        self._num_done = 0
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._away = False  # this and the next are used by the thread alone
        self._refusals: set[str] = set()
        self.num_refused = 0
        """Number of writes that MLflow refused; complete when the search has ended."""

    @property
    def parent_run_id(self) -> str:
        """The parent's ID in MLflow, once the search has started."""
        return self._runs.parent_run_id

    @property
    def num_pending(self) -> int:
        """Number of trials, and of writes at the end of the search, that MLflow still lacks."""
        return len(self._trials) + len(self._ending)

    def search_started(self, search: SearchRecord) -> None:
        """Connect, and create the parent run or reopen the one of an earlier session.

        Raises:
            TrackingError: within seconds, if MLflow cannot be used.
        """
        self._search = search
        client, experiment_id = mlf.connect(self._uri, self._experiment)
        self._runs = SearchRuns(client, experiment_id, search, self._all_metrics)
        # For the whole search, not around each write: a thread must not change the environment
        # while another one reads it.
        self._brief.enter_context(mlf.brief_requests())
        try:
            self._runs.open_parent()
        except Exception as error:
            self._brief.close()
            raise TrackingError(
                f"MLflow at {redact(self._uri)} refused the run of the search: "
                f"{mlf.reason_of(error, self._uri)}"
            ) from None
        # A daemon: a process that ends does not wait for a request that hangs.
        self._thread = threading.Thread(target=self._write_all, name="mlflow", daemon=True)
        self._thread.start()

    def trial_started(self, record: TrialRecord) -> None:
        """Note that the trial has to be written; returns at once, as do the next three."""
        with self._changes:
            self._trials[record.trial_id] = record

    trial_progressed = trial_started
    trial_reported = trial_started
    trial_ended = trial_started

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Write what is missing, close every run, add the best trial and the run folder's results.

        Waits for MLflow, but only seconds if it is away.
        """
        patience = _PATIENCE_STOPPED_S if outcome == "stopped" else _PATIENCE_S
        with self._changes:
            self._trials |= {record.trial_id: record for record in records}
            self._ending = [
                partial(self._runs.close, records, outcome),
                self._runs.upload_results,
            ]
        try:
            if not self.wait(patience):
                _log.warning(
                    "MLflow at %s is still away; %d parts of this search are missing in it. "
                    "Nothing is lost: once it is back, `lipsum-tune report %s` adds them.",
                    redact(self._uri),
                    self.num_pending,
                    self._search.run_folder,
                )
        finally:
            with self._changes:
                self._closed = True
                self._changes.notify_all()
            self._brief.close()

    def wait(self, patience_seconds: float = _PATIENCE_S) -> bool:
        """Wait until MLflow has everything; False at Ctrl-C, or if it accepts nothing for long."""
        with self._changes:
            self._hurry = True
            self._changes.notify_all()
            try:
                while self.num_pending:
                    done = self._num_done
                    if not self._changes.wait_for(
                        lambda done=done: self._num_done > done,  # type: ignore[misc]
                        patience_seconds,
                    ):
                        return False
            except KeyboardInterrupt:
                return False
            finally:
                self._hurry = False
        return True

    def _write_all(self) -> None:
        """The thread: write what is pending, every few seconds or as soon as `wait` asks for it."""
        while True:
            with self._changes:
                self._changes.wait_for(
                    lambda: self._closed or (self._hurry and self.num_pending > 0), self._interval
                )
                if self._away and self._hurry:
                    self._changes.wait_for(lambda: self._closed, min(self._interval, 1.0))
                if self._closed:
                    return
                trials, ending = list(self._trials.values()), list(self._ending)
            for record in trials:
                if self._closed or not self._attempt(self._runs.write, record):
                    break
                with self._changes:
                    if self._trials.get(record.trial_id) is record:
                        del self._trials[record.trial_id]
                    self._count()
            else:
                for write in ending:
                    if self._closed or not self._attempt(write):
                        break
                    with self._changes:
                        self._ending.remove(write)
                        self._count()

    def _count(self) -> None:
        self._num_done += 1
        self._changes.notify_all()

    def _attempt(self, write: Callable[..., None], *arguments: Any) -> bool:
        """Write something; False if the server is away and it has to be repeated later.

        What MLflow refuses is dropped with a warning, since it would be refused every time.
        """
        try:
            write(*arguments)
        except Exception as error:
            message = " ".join(redact(str(error), self._uri).split())
            if mlf.is_refusal(error):
                self.num_refused += 1
                if message[:500] not in self._refusals:
                    self._refusals.add(message[:500])
                    _log.warning(
                        "MLflow at %s refused a write: %s", redact(self._uri), message[:500]
                    )
                return True
            if not self._away:
                self._away = True
                _log.warning(
                    "MLflow at %s does not answer; the search continues and writes to it later. %s",
                    redact(self._uri),
                    message[:300],
                )
            return False
        if self._away:
            self._away = False
            _log.warning(
                "MLflow at %s answers again; what is missing is written.", redact(self._uri)
            )
        return True


def backfill(run: LoadedRun) -> str:
    """Write everything that MLflow lacks of a search that no driver runs at present.

    Runs that a killed driver left RUNNING are closed; a resume of the search reopens them.

    Returns:
        What MLflow has now, in one line.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    uri = tracking_uri(run.file.search.tracking.uri, run.folder.parent)
    where = redact(uri)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        return f"{where} is not here"  # the run folder was moved, or never had one
    tracking = run.file.search.tracking
    callback = MlflowCallback(uri, tracking.experiment, tracking.metrics == "all")
    callback.search_started(run.search)
    callback.search_ended(run.history.records, run.history.outcome or "stopped")
    if callback.num_pending:
        return f"{where} lacks {callback.num_pending} parts of it; repeat this once it answers"
    if callback.num_refused:
        return f"{where} refused {callback.num_refused} part(s) of it (see the warnings)"
    return f"{where} has all of it"
