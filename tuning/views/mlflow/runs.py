"""The runs of one search in MLflow: a parent, and a child for each trial.

Every method brings MLflow to a given state: it sends what MLflow lacks and nothing else. So it can
be repeated after it failed half-way, after a resume, and by `lipsum-tune report`.

A step that is reported again after a resume, with another value because GPUs do not repeat
themselves to the bit, is logged again: MLflow takes the point with the later timestamp as the value
of the step, as the journal does, and its charts show both as a vertical line at that step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from trainers.data.storage import url_of
from tuning.algorithms.rung_check import describe_checks
from tuning.runs.checkpoint_home import TRAIN_FOLDER, checkpoint_home, trial_path
from tuning.runs.environment import ENVIRONMENT_FILE, recorded_environment
from tuning.runs.ranking import best_trial
from tuning.runs.records import (
    AVERAGED,
    EVAL_IMAGES,
    STEP,
    ZERO_SHOT,
    Outcome,
    SearchOutcome,
    SearchRecord,
    TrialRecord,
)
from tuning.runs.run_folder import CONFIG_FILE
from tuning.views.formatting import format_params, trial_label
from tuning.views.html_report import MAIN_FIGURE, REPORT_FOLDER
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import NOTE_TAG, PARENT_TAG
from tuning.views.mlflow.description import describe
from tuning.views.mlflow.view import main_metrics, share_view

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

STATUS: dict[Outcome | SearchOutcome, str] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "pruned": "FINISHED",  # as planned: MLflow marks a killed run like a failed one
    "stopped": "KILLED",
    "failed": "FAILED",
}
_NOTE_FIGURE = "description.png"
"""Artifact of the parent run."""


@dataclass
class _Child:
    """A child run that is not closed yet."""

    run_id: str
    sent: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """Step -> the report that MLflow has of it."""
    unsure: dict[int, tuple[Mapping[str, float], int]] = field(default_factory=dict)
    """Step -> report and timestamp of a request that was not answered. It is repeated with the same
    timestamp, since MLflow ignores a metric that it has already."""


class SearchRuns:
    """What a search has in MLflow. To be used by one thread at a time.

    Args:
        search: whose runs they are; its `run_id` identifies them wherever the folder is moved.
        all_metrics: log everything that trials report, and not only `main_metrics`.
    """

    parent_run_id: str
    """ID of the parent run, once `open_parent` was called."""

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        search: SearchRecord,
        all_metrics: bool = False,
    ) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._search = search
        main = main_metrics(search)
        self._order = {key: place for place, key in enumerate(mlf.keys_of(main).values())}
        self._shown = None if all_metrics else frozenset(main)
        storage = search.configured("search", "checkpoints", "storage")
        name = search.configured("search", "name") or search.name
        storage = None if storage is None else str(storage)
        home = checkpoint_home(search.run_folder.resolve(), storage, str(name), search.run_id)
        self._checkpoints = url_of(home, TRAIN_FOLDER)
        self._params: dict[str, None] = {}  # all parameters of the trials, in order
        self._earlier: dict[str, Run] = {}  # trial ID -> child of an earlier session, not yet used
        self._open: dict[str, _Child] = {}
        self._closed: dict[str, tuple[Outcome, float | None]] = {}  # trial ID -> how and when
        self._run_ids: dict[str, str] = {}  # trial ID -> run ID
        self._answer_lost = False  # MLflow may have created a run without an answer arriving here

    def open_parent(self) -> None:
        """Create the parent run, or reopen the one of an earlier session."""
        search = self._search
        tags = {
            "search": search.name,
            "search_id": search.run_id,
            "run_folder": str(search.run_folder.resolve()),
            "kind": "search",
            "outcome": "running",
            NOTE_TAG: describe(search),
        }
        recorded = recorded_environment(search.run_folder)
        version = recorded.get("packages", {}).get("lipsum-tune", "")
        tags["mlflow.source.name"] = f"lipsum-tune {version}".strip()
        if commit := recorded.get("git_commit"):
            tags["mlflow.source.git.commit"] = commit
        earlier = mlf.search_run(self._client, self._experiment_id, search.run_id)
        if earlier is None:
            self.parent_run_id = self._create(search.name, tags, None)
        else:
            self.parent_run_id = str(earlier.info.run_id)
            self._client.update_run(self.parent_run_id, status="RUNNING", name=search.name)
            mlf.log(self._client, self.parent_run_id, tags=mlf.tags_of(tags))
            self._find_children()
        if earlier is None or not earlier.data.params:
            self._share_view([])
            if not self._find("tags.kind = 'zero_shot'"):
                tags = self._child_tags(ZERO_SHOT, "zero_shot") | {"outcome": "finished"}
                run_id = self._create(ZERO_SHOT, tags, None)
                metrics = mlf.metrics_of(self._logged(search.zero_shot), 0, _milliseconds())
                mlf.log(self._client, run_id, metrics)
                self._client.set_terminated(run_id)
            self._log_inputs()
            # Last, since they show that the rest has been done.
            mlf.log(self._client, self.parent_run_id, params=mlf.params_of(search.config))

    def write(self, record: TrialRecord) -> None:
        """Send what MLflow lacks of a trial, and close its run if the trial has ended."""
        if self._closed.get(record.trial_id) == (record.outcome, record.ended_at):
            return
        if record.trial_id not in self._open and not self._reopen(record):
            return
        child = self._open[record.trial_id]
        new: dict[int, tuple[Mapping[str, float], int]] = {}
        now = _milliseconds()
        for step, point in self._points(record).items():
            if not _is_same(child.sent.get(step), point):
                before, sent_at = child.unsure.get(step, (None, now))
                new[step] = (point, sent_at if _is_same(before, point) else now)
        if new:
            child.unsure = new
            metrics: list[Metric] = []
            tags: dict[str, str] = {}
            for step, (point, timestamp_ms) in new.items():
                logged = mlf.metrics_of(point, step, timestamp_ms)
                metrics += logged
                if len(logged) < len(point):
                    lost = [f"{n}={v}" for n, v in point.items() if not mlf.finite({n: v})]
                    tags["nonfinite"] = f"step {step}: {', '.join(lost)}"
            mlf.log(self._client, child.run_id, self._sorted(metrics), tags=mlf.tags_of(tags))
            child.sent |= {step: point for step, (point, _) in new.items()}
            child.unsure = {}
        if record.outcome != "running":
            self._end(record)

    def close(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Close every child that is still open, then the parent with what the search found."""
        ended = {record.trial_id: record for record in records if record.outcome != "running"}
        for child in self._find("attributes.status = 'RUNNING'"):
            run_id, trial_id = str(child.info.run_id), child.data.tags.get("trial_id", "")
            if self._run_ids.get(trial_id, run_id) != run_id and not child.data.metrics:
                # A server that hung was asked again, and later carried out both requests.
                self._client.delete_run(run_id)
            elif trial_id in ended:
                self._end(ended[trial_id])
            else:
                mlf.log(self._client, run_id, tags=mlf.tags_of({"outcome": "stopped"}))
                self._client.set_terminated(run_id, "KILLED")

        self._share_view(records)
        search = self._search
        times = [record.ended_at for record in records if record.ended_at is not None]
        # A search that MLflow did not have while it ran has ended before its run was created.
        created_ms = self._client.get_run(self.parent_run_id).info.start_time
        ended_ms = max(created_ms, round(1000 * max(times, default=time.time())))
        figure = ""
        if (search.run_folder / REPORT_FOLDER / MAIN_FIGURE).is_file():  # uploaded after this
            figure = f"get-artifact?path={_NOTE_FIGURE}&run_uuid={self.parent_run_id}"
        note = describe(search, records, outcome, figure)
        tags: dict[str, str] = {"outcome": outcome, NOTE_TAG: note}
        if checks := describe_checks(search, records):
            tags["rung_checks"] = "\n".join(checks)
        metrics: list[Metric] = []
        best = best_trial(search, records)
        if best is not None:
            tags["best/trial"] = best.trial_id
            # Tags, not params: a resumed search may find better ones, and params cannot change.
            tags |= {f"best/{key}": str(value) for key, value in best.params.items()}
            values = {f"best/{name}": v for name, v in self._logged(best.metrics).items()}
            metrics = self._sorted(mlf.metrics_of(values, best.step, ended_ms))
        mlf.log(self._client, self.parent_run_id, metrics, tags=mlf.tags_of(tags))
        self._client.set_terminated(self.parent_run_id, STATUS[outcome], ended_ms)

    def _log_inputs(self) -> None:
        """Log the data that trials are trained and evaluated on, with their fingerprints."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        root, inputs = self._search.configured("trial", "data", "root"), []
        recorded = recorded_environment(self._search.run_folder)
        for name, digest in recorded.get("data", {}).items():
            domain, _, split = name.partition("/")
            kind = "ID" if domain == self._search.id_domain else "OOD"
            context = "training" if split == "train" else f"{kind} validation"
            source = json.dumps({"uri": mlf.redact(f"{root}/{name}")})
            dataset = Dataset(name, digest, "local", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        if inputs:
            self._client.log_inputs(self.parent_run_id, inputs)

    def upload_results(self) -> None:
        """Copy tables, report, configuration and environment to the parent's artifacts."""
        run_folder = self._search.run_folder
        for path in (*run_folder.glob("*.parquet"), *(run_folder / REPORT_FOLDER).glob("*")):
            self._client.log_artifact(self.parent_run_id, str(path))
        if (path := run_folder / REPORT_FOLDER / MAIN_FIGURE).is_file():
            # The page of a run shows images in their full size, which is that for print.
            with Image.open(path) as image:
                image.thumbnail((700, 700))
                self._client.log_image(self.parent_run_id, image, _NOTE_FIGURE)
        for name in (CONFIG_FILE, ENVIRONMENT_FILE):
            if (path := run_folder / name).is_file():
                text = mlf.redact(path.read_text(encoding="utf-8"))
                self._client.log_text(self.parent_run_id, text, name)

    def _reopen(self, record: TrialRecord) -> bool:
        """Find or create a trial's child run; False if MLflow has everything of it already."""
        trial_id = record.trial_id
        if trial_id not in self._run_ids and self._answer_lost:
            self._find_children()
            self._answer_lost = False
        earlier = self._earlier.get(trial_id)
        if earlier is not None and self._is_complete(earlier, record):
            self._set_closed(record)
            return False
        if trial_id not in self._run_ids:
            tags = self._child_tags(trial_id, record.kind) | {"outcome": "running"}
            tags["checkpoints"] = mlf.redact(url_of(self._checkpoints, trial_path(trial_id)))
            if (method := self._search.method(record)) is not None:
                tags["method"] = method
            self._answer_lost = True
            self._run_ids[trial_id] = self._create(self._name(record), tags, record.started_at)
            self._answer_lost = False
            child = _Child(self._run_ids[trial_id])
        else:
            child = _Child(self._run_ids[trial_id])
            if record.outcome == "running":
                mlf.log(self._client, child.run_id, tags=mlf.tags_of({"outcome": "running"}))
                self._client.update_run(child.run_id, status="RUNNING")
            # The reports that an earlier session logged, as MLflow has them.
            sent: dict[int, dict[str, float]] = {}
            names = {n for point in self._points(record).values() for n in mlf.finite(point)}
            for name in sorted(names):
                for metric in self._client.get_metric_history(child.run_id, name):  # by time
                    sent.setdefault(metric.step, {})[name] = metric.value
            child.sent = dict(sent)
        params = record.params or self._search.reference_params
        mlf.log(self._client, child.run_id, params=mlf.params_of(params))
        if record.params.keys() - self._params.keys():
            self._share_view([record])
        self._closed.pop(trial_id, None)
        self._earlier.pop(trial_id, None)
        self._open[trial_id] = child
        return True

    def _end(self, record: TrialRecord) -> None:
        run_id = self._run_ids[record.trial_id]
        tags: dict[str, str] = {"outcome": record.outcome}
        if record.error:
            tags["error"] = record.error
        # Tags even where they are no metrics: they qualify the accuracies of the last report.
        qualities = {name: record.last(name) for name in (AVERAGED, EVAL_IMAGES)}
        tags |= {name: f"{value:.0f}" for name, value in qualities.items() if value is not None}
        mlf.log(self._client, run_id, tags=mlf.tags_of(tags))
        if record.outcome == "pruned":  # MLflow shows it like a finished one
            self._client.update_run(run_id, name=self._name(record))
        ended_ms = None if record.ended_at is None else round(1000 * record.ended_at)
        self._client.set_terminated(run_id, STATUS[record.outcome], ended_ms)
        self._set_closed(record)

    def _set_closed(self, record: TrialRecord) -> None:
        self._closed[record.trial_id] = (record.outcome, record.ended_at)
        self._open.pop(record.trial_id, None)
        self._earlier.pop(record.trial_id, None)

    def _find_children(self) -> None:
        """Find the children of earlier sessions, and of requests whose answer was lost."""
        # If a trial has two, take the one that has params or metrics.
        for child in sorted(
            self._find(), key=lambda run: bool(run.data.params or run.data.metrics)
        ):
            trial_id = child.data.tags.get("trial_id")
            if trial_id is not None and trial_id not in self._open.keys() | self._closed.keys():
                self._earlier[trial_id] = child
                self._run_ids[trial_id] = str(child.info.run_id)

    def _child_tags(self, trial_id: str, kind: str) -> dict[str, str]:
        search = {"search": self._search.name, "search_id": self._search.run_id}
        return {PARENT_TAG: self.parent_run_id, **search, "trial_id": trial_id, "kind": kind}

    def _share_view(self, records: Sequence[TrialRecord]) -> None:
        """Store the search's page with a column for each parameter of the trials."""
        self._params |= {key: None for record in records for key in record.params}
        share_view(self._client, self._experiment_id, self._search, list(self._params))

    def _logged(self, report: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a report that MLflow gets."""
        shown = self._shown
        return {n: v for n, v in report.items() if n != "step" and (shown is None or n in shown)}

    def _sorted(self, metrics: Sequence[Metric]) -> list[Metric]:
        """The metrics in the order of `main_metrics`, those of the best trial as well.

        MLflow 3.17 shows metrics in order of arrival, and compares runs by the first one.
        """
        last = len(self._order)
        return sorted(metrics, key=lambda m: self._order.get(m.key.removeprefix("best/"), last))

    def _points(self, record: TrialRecord) -> Mapping[int, Mapping[str, float]]:
        """Step -> what MLflow gets: reports, and the training curve, which goes on at their steps.

        A report's own loss is the mean since the last report, which is another curve.
        """
        points: dict[int, dict[str, float]] = {}
        for point in (*record.curve, *record.train_points):
            points.setdefault(int(point.get(STEP, 0)), {}).update(self._logged(point))
        return dict(sorted(points.items()))

    def _is_complete(self, run: Run, record: TrialRecord) -> bool:
        """Whether a child run was closed after the last report of the record's trial."""
        last = mlf.finite(self._points(record).get(record.step, {}))
        return (
            record.outcome != "running"
            and run.info.status == STATUS[record.outcome]
            and run.data.tags.get("outcome") == record.outcome
            and all(run.data.metrics.get(name) == value for name, value in last.items())
        )

    def _name(self, record: TrialRecord) -> str:
        """Name of a trial's run, with the last step of a pruned trial."""
        label = trial_label(self._search, record)
        label += f" (pruned {record.step})" if record.outcome == "pruned" else ""
        return f"{label} {format_params(record.params)}".strip()

    def _create(self, name: str, tags: dict[str, str], started_at: float | None) -> str:
        started_ms = None if started_at is None else round(1000 * started_at)
        safe = {tag.key: tag.value for tag in mlf.tags_of(tags)}
        run = self._client.create_run(self._experiment_id, started_ms, safe, run_name=name)
        return str(run.info.run_id)

    def _find(self, condition: str = "") -> list[Run]:
        return mlf.runs_below(self._client, self._experiment_id, self.parent_run_id, condition)


def _is_same(before: Mapping[str, float] | None, now: Mapping[str, float]) -> bool:
    """Whether two reports agree in all values that MLflow can hold."""
    return before is now or (before is not None and mlf.finite(before) == mlf.finite(now))


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
