"""The search in MLflow: one parent run a search, one child run a trial.

| run | name | tags | metrics |
|---|---|---|---|
| parent | the search's | search, run_folder, kind, outcome, best/* | zero_shot/*, best/* |
| child | the trial's | search, trial_id, kind, method, outcome, error, nonfinite | its reports |

Statuses: FINISHED; KILLED for pruned and stopped; FAILED. Every child has `outcome`, `kind` and
`method` from the start, since a filter on a tag hides the runs that lack it. The best parameters
are tags, not params: a resumed search may find better ones, and MLflow's params cannot change.

MLflow watches, it does not take part. Once the search runs, nothing here raises: a write that fails
waits in memory, in order, and is tried again at a later event and at the end.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient

from tuning.records import Outcome, SearchOutcome, SearchRecord, TrialRecord
from tuning.reporting.figures import figure
from tuning.reporting.tables import write_tables
from tuning.reporting.wise_figure import WISE_FIGURE, wise_figure
from tuning.selection import best_trial
from tuning.tracking import mlflow_client as mlf
from tuning.tracking.mlflow_client import TrackingError, default_tracking_uri
from tuning.tracking.mlflow_note import describe
from tuning.tracking.mlflow_queue import WriteQueue

__all__ = ["MlflowListener", "TrackingError", "default_tracking_uri"]

_log = logging.getLogger(__name__)
_STATUS: dict[Outcome | SearchOutcome, str] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "pruned": "KILLED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
_NOTE = "mlflow.note.content"
_PARENT = "mlflow.parentRunId"


class MlflowListener:
    """Writes a search to MLflow as it goes on, and finds its runs again after a resume.

    Args:
        tracking_uri: A database (`sqlite:////abs/mlflow.db`) or a server (`https://...`).
        experiment: Its experiment in MLflow, one for a project; made where it is missing.
        retry_seconds: While the server is away, events ask it no more often than this.
    """

    _client: MlflowClient
    _experiment_id: str
    _search: SearchRecord
    parent_run_id: str
    """The parent's id in MLflow, once the search has started."""

    def __init__(self, tracking_uri: str, experiment: str, retry_seconds: float = 30.0) -> None:
        self._uri = tracking_uri
        self._experiment = experiment
        self._queue = WriteQueue(tracking_uri, retry_seconds)
        self._runs: dict[str, str] = {}  # trial id -> run id
        self._queued_steps: dict[str, set[int]] = {}
        self._stored_steps: dict[str, set[int]] = {}
        self._closed: dict[str, str] = {}  # trial id -> outcome, where an earlier session closed it

    def search_started(self, search: SearchRecord) -> None:
        """Connects, and makes the parent run or goes on with the one of an earlier session.

        Raises:
            TrackingError: within seconds, if MLflow cannot be used.
        """
        self._search = search
        self._client, self._experiment_id = mlf.connect(self._uri, self._experiment)
        try:
            with mlf.brief_requests():
                self.parent_run_id = self._open_parent()
        except Exception as error:
            raise TrackingError(
                f"MLflow at {mlf.redact(self._uri)} refused the run of the search: "
                f"{mlf.redact(str(error))[:300]}"
            ) from None

    @property
    def num_pending(self) -> int:
        """Writes that wait for the server to come back."""
        return len(self._queue)

    def trial_started(self, record: TrialRecord) -> None:
        """Makes the child run with its params, or opens it again."""
        self._closed.pop(record.trial_id, None)
        self._queue.append(lambda: self._begin(record))
        self._append_reports(record)
        self._queue.flush()

    def trial_reported(self, record: TrialRecord) -> None:
        """Logs the report, and any that no event announced, in one request each."""
        self._append_reports(record)
        self._queue.flush()

    def trial_ended(self, record: TrialRecord) -> None:
        """Closes the child run; one that an earlier session closed has all of it already."""
        if self._closed.get(record.trial_id) != record.outcome:
            self._append_reports(record)
            self._queue.append(lambda: self._end(record))
            self._queue.flush()
        self._queued_steps.pop(record.trial_id, None)
        self._stored_steps.pop(record.trial_id, None)
        self._closed[record.trial_id] = record.outcome

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Closes every run and adds to the parent what was found: best trial, figure, tables."""
        for record in records:
            if self._closed.get(record.trial_id) != record.outcome:
                self._queue.append(lambda record=record: self._begin(record))  # type: ignore[misc]
                self._append_reports(record)
        now = _milliseconds()
        self._queue.append(lambda: self._close_children(records))
        self._queue.append(lambda: self._close_parent(records, outcome, now))
        self._queue.append(lambda: self._upload(records))
        self._queue.flush(now=True)
        if self._queue:
            _log.warning(
                "MLflow at %s is still away; %d writes of this search are not in it. Nothing is "
                "lost: trials.parquet and curves.parquet in %s have all of it.",
                mlf.redact(self._uri),
                len(self._queue),
                self._search.run_folder,
            )

    def _append_reports(self, record: TrialRecord) -> None:
        queued = self._queued_steps.setdefault(record.trial_id, set())
        # The time of the event, not of the request: a repeated request must be the same one.
        now = _milliseconds()
        for point in record.curve:
            step = int(point.get("step", 0))
            if step not in queued:
                queued.add(step)
                self._queue.append(
                    lambda step=step, point=point: self._report(record, step, point, now)  # type: ignore[misc]
                )

    # The writes. Each finds or makes its run, and can be done twice without harm.

    def _open_parent(self) -> str:
        search = self._search
        folder = str(search.run_folder.resolve())
        # A hash, since a name or a folder may hold quotes, which a filter cannot.
        search_id = hashlib.sha256(f"{search.name}\n{folder}".encode()).hexdigest()[:16]
        tags = {"search": search.name, "search_id": search_id, "run_folder": folder}
        tags |= {"kind": "search", "outcome": "running", _NOTE: describe(search)}
        earlier = self._find(f"tags.search_id = '{search_id}' and tags.kind = 'search'")
        if earlier:
            run_id = str(earlier[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            mlf.log(self._client, run_id, tags=mlf.tags_of(tags))
            self._adopt_children(run_id)
        else:
            run_id = self._create(search.name, tags, None)
        if not earlier or not earlier[0].data.params:
            zero_shot = {f"zero_shot/{k}": v for k, v in search.zero_shot.items() if k != "step"}
            metrics, _ = mlf.metrics_of(zero_shot, 0, _milliseconds())
            mlf.log(self._client, run_id, metrics, mlf.params_of(search.config))
        return run_id

    def _adopt_children(self, parent_run_id: str) -> None:
        for child in self._find(f"tags.`{_PARENT}` = '{parent_run_id}'"):
            tags = child.data.tags
            if "trial_id" in tags:
                self._runs[tags["trial_id"]] = str(child.info.run_id)
                # The reports are written before the end, so a run that is closed is complete.
                if child.info.status == _STATUS.get(tags["outcome"]) != "RUNNING":  # type: ignore[call-overload]
                    self._closed[tags["trial_id"]] = tags["outcome"]

    def _child(self, record: TrialRecord) -> str:
        """The child's run id; the run is made if no earlier event or session did."""
        if record.trial_id not in self._runs and self._queue.had_failure:
            self._adopt_children(self.parent_run_id)  # made, but the answer was lost
        if record.trial_id not in self._runs:
            tags = {
                _PARENT: self.parent_run_id,
                "search": self._search.name,
                "trial_id": record.trial_id,
                "kind": record.kind,
                "outcome": "running",
            }
            if (method := self._search.method(record)) is not None:
                tags["method"] = method
            self._runs[record.trial_id] = self._create(record.trial_id, tags, record.started_at)
            self._stored_steps[record.trial_id] = set()
        return self._runs[record.trial_id]

    def _begin(self, record: TrialRecord) -> None:
        run_id = self._child(record)
        mlf.log(self._client, run_id, params=mlf.params_of(record.params))
        if record.outcome == "running":
            mlf.log(self._client, run_id, tags=mlf.tags_of({"outcome": "running"}))
            self._client.update_run(run_id, status="RUNNING")

    def _report(
        self, record: TrialRecord, step: int, point: Mapping[str, float], timestamp_ms: int
    ) -> None:
        run_id = self._child(record)
        if step in self._steps_in_mlflow(record.trial_id, run_id):
            return
        values = {name: value for name, value in point.items() if name != "step"}
        metrics, nonfinite = mlf.metrics_of(values, step, timestamp_ms)
        tags = {"nonfinite": f"step {step}: {', '.join(nonfinite)}"} if nonfinite else {}
        mlf.log(self._client, run_id, metrics, tags=mlf.tags_of(tags))

    def _steps_in_mlflow(self, trial_id: str, run_id: str) -> set[int]:
        """Steps that an earlier session logged, asked for once a trial."""
        if trial_id not in self._stored_steps:
            history = self._client.get_metric_history(run_id, self._search.objectives[0].metric)
            self._stored_steps[trial_id] = {metric.step for metric in history}
        return self._stored_steps[trial_id]

    def _end(self, record: TrialRecord) -> None:
        run_id = self._child(record)
        tags: dict[str, str] = {"outcome": record.outcome}
        if record.error:
            tags["error"] = record.error
        mlf.log(self._client, run_id, tags=mlf.tags_of(tags))
        ended_ms = None if record.ended_at is None else round(1000 * record.ended_at)
        self._client.set_terminated(run_id, _STATUS[record.outcome], ended_ms)

    def _close_children(self, records: Sequence[TrialRecord]) -> None:
        """No child stays RUNNING after the search, not even one whose end nobody saw."""
        known = {record.trial_id: record for record in records if record.outcome != "running"}
        running = f"tags.`{_PARENT}` = '{self.parent_run_id}' and attributes.status = 'RUNNING'"
        for child in self._find(running):
            record = known.get(child.data.tags.get("trial_id", ""))
            if record is not None:
                self._end(record)
                continue
            run_id = child.info.run_id
            mlf.log(self._client, run_id, tags=mlf.tags_of({"outcome": "stopped"}))
            self._client.set_terminated(run_id, "KILLED")

    def _close_parent(
        self, records: Sequence[TrialRecord], outcome: SearchOutcome, now_ms: int
    ) -> None:
        search = self._search
        tags: dict[str, str] = {"outcome": outcome, _NOTE: describe(search, records, outcome)}
        metrics: list[Metric] = []
        best = best_trial(search, records)
        if best is not None:
            tags["best/trial"] = best.trial_id
            tags |= {f"best/{key}": str(value) for key, value in best.params.items()}
            values = {f"best/{name}": v for name, v in best.metrics.items() if name != "step"}
            metrics, _ = mlf.metrics_of(values, best.step, now_ms)
        mlf.log(self._client, self.parent_run_id, metrics, tags=mlf.tags_of(tags))
        self._client.set_terminated(self.parent_run_id, _STATUS[outcome])

    def _upload(self, records: Sequence[TrialRecord]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tables = write_tables(Path(folder), self._search, records)
            picture = figure(self._search, records, Path(folder) / "accuracy.png")
            wise = wise_figure(self._search, records, Path(folder) / WISE_FIGURE)
            for path in (*tables, picture, *([wise] if wise else [])):
                self._client.log_artifact(self.parent_run_id, str(path))

    def _create(self, name: str, tags: dict[str, str], started_at: float | None) -> str:
        started_ms = None if started_at is None else round(1000 * started_at)
        safe = {tag.key: tag.value for tag in mlf.tags_of(tags)}
        run = self._client.create_run(self._experiment_id, started_ms, safe, run_name=name)
        return str(run.info.run_id)

    def _find(self, filter_string: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], filter_string, max_results=1000, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
