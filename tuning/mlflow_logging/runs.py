"""The runs of one search in MLflow: a parent, and a child a trial, found or made and written to.

Every function here is a request or several, may raise what MLflow raises, and can be called again
after it failed half-way: the second time does what is missing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient

from tuning.mlflow_logging import client as mlf
from tuning.mlflow_logging.description import describe
from tuning.runs.records import Outcome, SearchOutcome, SearchRecord, TrialRecord
from tuning.selection.rules import best_trial

STATUS: dict[Outcome | SearchOutcome, str] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "pruned": "KILLED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
_FINAL: dict[str, str] = {outcome: STATUS[outcome] for outcome in ("finished", "pruned", "failed")}
_NOTE = "mlflow.note.content"
_PARENT = "mlflow.parentRunId"


class SearchRuns:
    """What a search has in MLflow. For one thread at a time: the writer's, once the search runs.

    Args:
        client: connected.
        experiment_id: where the runs are, or will be.
        search: whose runs they are.
    """

    parent_run_id: str
    """Once the parent is open."""

    def __init__(self, client: MlflowClient, experiment_id: str, search: SearchRecord) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._search = search
        self._runs: dict[str, str] = {}  # trial id -> run id
        self._steps: dict[str, set[int]] = {}  # trial id -> steps that an earlier session logged
        self._answer_lost = False  # a run may have been made although nobody was told

    def open_parent(self) -> dict[str, str]:
        """Makes the parent run, or goes on with the one of an earlier session.

        Returns:
            The outcomes of trials that MLflow knows to have ended for good, by their names: their
            reports are there too, for a run is closed after the last of them.
        """
        search = self._search
        folder = str(search.run_folder.resolve())
        # A hash, since a name or a folder may hold quotes, which a filter cannot.
        search_id = hashlib.sha256(f"{search.name}\n{folder}".encode()).hexdigest()[:16]
        tags = {"search": search.name, "search_id": search_id, "run_folder": folder}
        tags |= {"kind": "search", "outcome": "running", _NOTE: describe(search)}
        earlier = self._find(f"tags.search_id = '{search_id}' and tags.kind = 'search'")
        ended: dict[str, str] = {}
        if earlier:
            self.parent_run_id = str(earlier[0].info.run_id)
            self._client.update_run(self.parent_run_id, status="RUNNING")
            mlf.log(self._client, self.parent_run_id, tags=mlf.tags_of(tags))
            ended = self._adopt_children()
        else:
            self.parent_run_id = self._create(search.name, tags, None)
        if not earlier or not earlier[0].data.params:
            zero_shot = {f"zero_shot/{k}": v for k, v in search.zero_shot.items() if k != "step"}
            metrics, _ = mlf.metrics_of(zero_shot, 0, milliseconds())
            mlf.log(self._client, self.parent_run_id, metrics, mlf.params_of(search.config))
        return ended

    def begin(self, record: TrialRecord) -> None:
        """The child run with its params; open, where the trial runs."""
        was_there = record.trial_id in self._runs
        run_id = self._child(record)
        mlf.log(self._client, run_id, params=mlf.params_of(record.params))
        if record.outcome == "running" and was_there:
            mlf.log(self._client, run_id, tags=mlf.tags_of({"outcome": "running"}))
            self._client.update_run(run_id, status="RUNNING")

    def report(
        self, record: TrialRecord, step: int, point: Mapping[str, float], timestamp_ms: int
    ) -> None:
        """One report of a trial, in one request; a step that MLflow has is left alone."""
        run_id = self._child(record)
        if step in self._steps_in_mlflow(record.trial_id, run_id):
            return
        values = {name: value for name, value in point.items() if name != "step"}
        metrics, nonfinite = mlf.metrics_of(values, step, timestamp_ms)
        tags = {"nonfinite": f"step {step}: {', '.join(nonfinite)}"} if nonfinite else {}
        mlf.log(self._client, run_id, metrics, tags=mlf.tags_of(tags))

    def end(self, record: TrialRecord) -> None:
        """Closes the child run with the trial's outcome."""
        run_id = self._child(record)
        tags: dict[str, str] = {"outcome": record.outcome}
        if record.error:
            tags["error"] = record.error
        mlf.log(self._client, run_id, tags=mlf.tags_of(tags))
        ended_ms = None if record.ended_at is None else round(1000 * record.ended_at)
        self._client.set_terminated(run_id, STATUS[record.outcome], ended_ms)
        self._steps.pop(record.trial_id, None)

    def close_children(self, records: Sequence[TrialRecord]) -> None:
        """No child stays RUNNING after the search, not even one whose end nobody saw."""
        known = {record.trial_id: record for record in records if record.outcome != "running"}
        running = f"tags.`{_PARENT}` = '{self.parent_run_id}' and attributes.status = 'RUNNING'"
        for child in self._find(running):
            run_id, trial_id = str(child.info.run_id), child.data.tags.get("trial_id", "")
            if self._runs.get(trial_id, run_id) != run_id and not child.data.metrics:
                # Made twice: a server that hung was asked again, and then answered both times.
                self._client.delete_run(run_id)
            elif trial_id in known:
                self.end(known[trial_id])
            else:
                mlf.log(self._client, run_id, tags=mlf.tags_of({"outcome": "stopped"}))
                self._client.set_terminated(run_id, "KILLED")

    def close_parent(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Closes the parent with what was found: the best trial and a description."""
        search = self._search
        ended = max((r.ended_at for r in records if r.ended_at is not None), default=time.time())
        ended_ms = round(1000 * ended)
        tags: dict[str, str] = {"outcome": outcome, _NOTE: describe(search, records, outcome)}
        metrics: list[Metric] = []
        best = best_trial(search, records)
        if best is not None:
            tags["best/trial"] = best.trial_id
            # Tags, not params: a resumed search may find better ones, and params cannot change.
            tags |= {f"best/{key}": str(value) for key, value in best.params.items()}
            values = {f"best/{name}": v for name, v in best.metrics.items() if name != "step"}
            metrics, _ = mlf.metrics_of(values, best.step, ended_ms)
        mlf.log(self._client, self.parent_run_id, metrics, tags=mlf.tags_of(tags))
        self._client.set_terminated(self.parent_run_id, STATUS[outcome], ended_ms)

    def upload(self, path: Path) -> None:
        """Adds a file to the parent; one of that name is replaced."""
        self._client.log_artifact(self.parent_run_id, str(path))

    def _adopt_children(self) -> dict[str, str]:
        """Finds the children of earlier sessions, and of requests whose answer was lost."""
        ended: dict[str, str] = {}
        # Of two of one trial, the one that holds something.
        for child in sorted(self._find(f"tags.`{_PARENT}` = '{self.parent_run_id}'"), key=_holds):
            tags = child.data.tags
            if "trial_id" not in tags:
                continue
            self._runs[tags["trial_id"]] = str(child.info.run_id)
            outcome = tags.get("outcome", "running")
            # One that was stopped may have gone on since, while MLflow was away.
            if child.info.status == _FINAL.get(outcome):
                ended[tags["trial_id"]] = outcome
        return ended

    def _child(self, record: TrialRecord) -> str:
        """The child's run id; the run is made if no earlier event or session did."""
        if record.trial_id not in self._runs and self._answer_lost:
            self._adopt_children()
            self._answer_lost = False
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
            self._answer_lost = True
            self._runs[record.trial_id] = self._create(record.trial_id, tags, record.started_at)
            self._answer_lost = False
            self._steps[record.trial_id] = set()
        return self._runs[record.trial_id]

    def _steps_in_mlflow(self, trial_id: str, run_id: str) -> set[int]:
        """Steps that an earlier session logged, asked for once a trial."""
        if trial_id not in self._steps:
            history = self._client.get_metric_history(run_id, self._search.objectives[0].metric)
            self._steps[trial_id] = {metric.step for metric in history}
        return self._steps[trial_id]

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


def milliseconds() -> int:
    """Now, as MLflow counts."""
    return time.time_ns() // 1_000_000


def _holds(run: Run) -> bool:
    return bool(run.data.params or run.data.metrics)
