"""The search in MLflow: one parent run a search, one child run a trial.

| run | name | tags | metrics |
|---|---|---|---|
| parent | the search's | search, run_folder, kind, outcome, best/* | zero_shot/*, best/* |
| child | the trial's | search, trial_id, kind, method, outcome, error, nonfinite | its reports |

Statuses: FINISHED; KILLED for pruned and stopped; FAILED. Every child has `outcome`, `kind` and
`method` from the start, since a filter on a tag hides the runs that lack it. The best parameters
are tags, not params: a resumed search may find better ones, and MLflow's params cannot change.

MLflow watches, it does not take part. Once the search runs, nothing here raises and nothing waits:
events put writes into a queue, whose own thread does them in order, again where they failed. What
MLflow lacks when the search ends is written by a resume, or by `lipsum-tune report`.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tuning.mlflow_logging import client as mlf
from tuning.mlflow_logging.client import TrackingError, default_tracking_uri
from tuning.mlflow_logging.runs import SearchRuns, milliseconds
from tuning.mlflow_logging.write_queue import WriteQueue
from tuning.reporting.figures.id_vs_ood import figure
from tuning.reporting.figures.wise_curves import WISE_FIGURE, wise_figure
from tuning.reporting.tables.trials import write_tables
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.security.redaction import redact

__all__ = ["MlflowCallback", "TrackingError", "default_tracking_uri"]

_log = logging.getLogger(__name__)
_PATIENCE_S = 30.0
"""So long a search that ended waits for a server that takes nothing."""
_PATIENCE_STOPPED_S = 10.0
"""The same where somebody wants it to stop; more than one request may take to fail."""


class MlflowCallback:
    """Writes a search to MLflow as it goes on, and finds its runs again after a resume.

    Two threads share the work, and no data: the events of the search, here, decide what is to be
    written; `SearchRuns`, on the queue's thread from the search's start on, writes it.

    Args:
        tracking_uri: A database (`sqlite:////abs/mlflow.db`) or a server (`https://...`).
        experiment: Its experiment in MLflow, one for a project; made where it is missing.
        retry_seconds: While the server is away it is asked so often.
    """

    _search: SearchRecord
    _runs: SearchRuns

    def __init__(self, tracking_uri: str, experiment: str, retry_seconds: float = 5.0) -> None:
        self._uri = tracking_uri
        self._experiment = experiment
        self._queue = WriteQueue(tracking_uri, retry_seconds)
        self._brief = contextlib.ExitStack()
        self._queued_steps: dict[str, set[int]] = {}
        self._closed: dict[str, str] = {}  # trial id -> outcome, of this session and earlier ones

    @property
    def parent_run_id(self) -> str:
        """The parent's id in MLflow, once the search has started."""
        return self._runs.parent_run_id

    @property
    def num_pending(self) -> int:
        """Writes that are not done yet."""
        return len(self._queue)

    def wait(self, patience_seconds: float = _PATIENCE_S) -> bool:
        """Waits until MLflow has all that happened; False where it takes nothing for so long."""
        return self._queue.finish(patience_seconds)

    def search_started(self, search: SearchRecord) -> None:
        """Connects, and makes the parent run or goes on with the one of an earlier session.

        Raises:
            TrackingError: within seconds, if MLflow cannot be used.
        """
        self._search = search
        client, experiment_id = mlf.connect(self._uri, self._experiment)
        self._runs = SearchRuns(client, experiment_id, search)
        # From here to the end, not around each write: the environment, where MLflow looks for its
        # limits, must not change on a thread while another one reads it.
        self._brief.enter_context(mlf.brief_requests())
        try:
            self._closed = self._runs.open_parent()
        except Exception as error:
            self._brief.close()
            reason = redact(str(error), self._uri).strip().partition("\n")[0][:300]
            raise TrackingError(
                f"MLflow at {redact(self._uri)} refused the run of the search: {reason}"
            ) from None

    def trial_started(self, record: TrialRecord) -> None:
        """Makes the child run with its params, or opens it again."""
        self._closed.pop(record.trial_id, None)
        self._queue.append(lambda: self._runs.begin(record))
        self._append_reports(record)

    def trial_reported(self, record: TrialRecord) -> None:
        """Logs the report, and any that no event announced, in one request each."""
        self._append_reports(record)

    def trial_ended(self, record: TrialRecord) -> None:
        """Closes the child run; one that an earlier session closed has all of it already."""
        if self._closed.get(record.trial_id) != record.outcome:
            self._append_reports(record)
            self._queue.append(lambda: self._runs.end(record))
        self._queued_steps.pop(record.trial_id, None)
        self._closed[record.trial_id] = record.outcome

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Closes every run and adds to the parent what was found: best trial, figure, tables.

        Waits for MLflow, in seconds where it is away.
        """
        patience = _PATIENCE_STOPPED_S if outcome == "stopped" else _PATIENCE_S
        try:
            for record in records:
                if self._closed.get(record.trial_id) != record.outcome:
                    self.trial_started(record)
                    if record.outcome != "running":
                        self.trial_ended(record)
            self._queue.append(lambda: self._runs.close_children(records))
            self._queue.append(lambda: self._runs.close_parent(records, outcome))
            # First the runs, at once: whoever stops a job may kill it seconds later.
            if self._queue.finish(patience):
                self._upload(records, patience)
            if self._queue:
                _log.warning(
                    "MLflow at %s is still away; %d writes of this search are not in it. Nothing "
                    "is lost: once it is back, `lipsum-tune report %s` writes them.",
                    redact(self._uri),
                    len(self._queue),
                    self._search.run_folder,
                )
        finally:
            self._queue.close()
            self._brief.close()

    def _upload(self, records: Sequence[TrialRecord], patience: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tables = write_tables(Path(folder), self._search, records)
            image = figure(self._search, records, Path(folder) / "accuracy.png")
            wise = wise_figure(self._search, records, Path(folder) / WISE_FIGURE)
            for path in (*tables, image, *([wise] if wise else [])):
                self._queue.append(lambda path=path: self._runs.upload(path))  # type: ignore[misc]
            self._queue.finish(patience)

    def _append_reports(self, record: TrialRecord) -> None:
        queued = self._queued_steps.setdefault(record.trial_id, set())
        # The time of the event, not of the request: a repeated request must be the same one.
        now = milliseconds()
        for point in record.curve:
            step = int(point.get("step", 0))
            if step not in queued:
                queued.add(step)
                self._queue.append(
                    lambda step=step, point=point: self._runs.report(record, step, point, now)  # type: ignore[misc]
                )
