"""The search in MLflow: one parent run for each search, one child run for each trial.

The zero-shot model is a child run, too. The metrics are `main_metrics`. The parent has report,
tables, resolved configuration and environment as artifacts, and the means over fresh seeds that
`confirm` has measured.

Every point has the time of its event. MLflow's SQL stores ignore a point that they have already
(same key, step, time and value), so whatever is in doubt is sent again, and no file notes what it
has received. Of several points MLflow shows that of the highest step, and of one step the latest.
So a trial that begins again gets a new run.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.log.environment import ENVIRONMENT_FILE, seen_at_start
from tuning.log.paths import CONFIG_FILE, CONFIRM_FOLDER, REPORT_FOLDER
from tuning.log.records import (
    MODEL,
    STEP,
    ZERO_SHOT,
    Report,
    TrialRecord,
    trial_label,
    zero_shot_record,
)
from tuning.results.estimates import Confirmation
from tuning.results.model import made_of
from tuning.results.ranking import misses, ranked
from tuning.run import Run
from tuning.views.follower import View
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.shared_view import main_metrics, order_of, share_view

if TYPE_CHECKING:
    from mlflow.entities import Metric

STATUS: Mapping[str, str] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "pruned": "FINISHED",  # as planned: MLflow marks a killed run like a failed one
    "stopped": "KILLED",
    "failed": "FAILED",
}


class MlflowView(View):
    """A search in MLflow, whose runs a resume continues.

    After an error it looks up again which runs MLflow has. One that was deleted is made again, with
    all that the journal has of it.

    Args:
        uri: a database (`sqlite:////abs/mlflow.db`) or a server (`https://...`), as configured.
    """

    def __init__(self, uri: str, seconds: float = 5.0) -> None:
        self.name = f"MLflow at {mlf.redact(uri)}"
        self.seconds = seconds
        self._uri = uri
        self._quiet = ExitStack()
        self._zero_shot: TrialRecord | None = None
        self._returns: dict[str, int] = {}  # `TrialRecord.returns` by trial ID
        # What MLflow has, by trial ID; looked up again after an error.
        self._is_open = False
        self._runs: dict[str, str] = {}
        self._sent: dict[str, set[float]] = {}  # times of reports
        self._written: dict[str, tuple[TrialRecord, str]] = {}  # with the tag `order`

    def start(self, run: Run) -> None:
        """Connect.

        Raises:
            TrackingError: within seconds, if MLflow cannot be used.
        """
        self._experiment = run.file.search.tracking.experiment
        mlf.connect(self._uri, self._experiment)
        # For the whole search, not around each write: a thread must not change the environment
        # while another one reads it. Requests are as long as MLflow has them: the upload of the
        # report takes its time, and callbacks of the user have these settings, too.
        self._quiet.enter_context(mlf.quiet())

    def close(self) -> None:
        """Give the environment back."""
        self._quiet.close()

    def write(self, run: Run) -> None:
        """Send what MLflow lacks. At the end, the results in the run folder are uploaded.

        Raises:
            TrackingError: MLflow lacks a part, which the next call sends.
        """
        self._run = run
        history = run.history
        if self._zero_shot is None and history.zero_shot is not None:
            at = history.zero_shot_at
            metrics = {STEP: 0, **history.zero_shot}
            reports = (Report(at, metrics),)
            self._zero_shot = replace(
                zero_shot_record(metrics), started_at=at, ended_at=at, reports=reports
            )
        zero_shot = [] if self._zero_shot is None else [self._zero_shot]
        records = [*zero_shot, *run.records]
        is_over = not run.is_live
        returns = {record.trial_id: record.returns for record in records if record.returns}
        if returns != self._returns:
            self._is_open = False  # a trial that begins again gets a new run
        self._returns = returns
        missed = misses(run.goal, run.records)
        ordered = ranked(run.goal, run.records) if len(run.goal.objectives) > 1 else []
        positions = {record.trial_id: position for position, record in enumerate(ordered)}
        confirmed = [*(run.conclusion.means or {})] if is_over else []
        orders = [
            order_of(run, r, missed.get(r.trial_id, {}), positions.get(r.trial_id, 0), confirmed)
            for r in records
        ]
        try:
            is_new = not self._is_open or is_over
            if is_new:
                self._open()
            is_changed = is_new
            for record, order in zip(records, orders, strict=True):
                written, its_order = self._written.get(record.trial_id, (None, ""))
                if written is not record or its_order != order:
                    self._write_trial(record, order)
                    is_changed = True
            if is_changed:
                outcome = history.outcome or ("stopped" if is_over else "running")
                self._write_parent(outcome)
                if is_over:
                    self._upload()
        except Exception as error:
            self._is_open = False
            # Its own text may hold the credentials of the URI.
            raise mlf.TrackingError(mlf.reason_of(error, self._uri)) from None

    def _open(self) -> None:
        """Connect, find or create the parent run, and find the runs of trials."""
        run = self._run
        client, self._experiment_id = mlf.connect(self._uri, self._experiment)
        self._client = client
        parent = mlf.search_run(client, self._experiment_id, run.history.run_id)
        if parent is None:
            own = {"search_id": run.history.run_id, "kind": "search"}
            start_ms = round(1000 * run.history.began_at)
            at_start = own | self._origin()
            parent = client.create_run(self._experiment_id, start_ms, at_start, run.name)
        tags = {"search": run.name, "run_folder": str(run.folder.resolve())}
        # MLflow's params cannot change, and a resumed search may have another configuration.
        params = [p for p in mlf.params_of(run.file.summary()) if p.key not in parent.data.params]
        client.log_batch(parent.info.run_id, params=params, tags=mlf.tags_of(tags))
        client.update_run(parent.info.run_id, name=run.name)  # its folder may be renamed
        self._parent_id = str(parent.info.run_id)
        self._inputs = self._dataset()
        client.log_inputs(self._parent_id, self._inputs)

        below = f"tags.search_id = '{run.history.run_id}' and tags.kind != 'search'"
        found = client.search_runs([self._experiment_id], below, max_results=50_000)
        self._runs = {}
        # A server that hung may have carried out two requests for a run. One of them has content.
        for one in sorted(found, key=lambda one: not (one.data.params or one.data.metrics)):
            trial_id, run_id = one.data.tags["trial_id"], str(one.info.run_id)
            is_earlier = int(one.data.tags.get("returns", 0)) < self._returns.get(trial_id, 0)
            if is_earlier or self._runs.setdefault(trial_id, run_id) != run_id:
                client.delete_run(run_id)
        self._sent = {name: n for name, n in self._sent.items() if name in self._runs}
        self._written = {name: r for name, r in self._written.items() if name in self._runs}
        self._is_open = True

    def _origin(self) -> dict[str, str]:
        """Tags of a new run for MLflow's columns *Source* and *User*."""
        found = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "lipsum-tune"}
        with suppress(OSError, KeyError):  # a container may have users without a name
            found["mlflow.user"] = getpass.getuser()
        return found

    def _dataset(self) -> list[mlf.DatasetInput]:
        """The images of the search for MLflow's column *Dataset*, by the hash of all splits."""
        run = self._run
        root = run.file.trial.data.root
        name = Path(root.partition("?")[0]).name
        splits = json.dumps(seen_at_start(run.folder) or {}, sort_keys=True).encode()
        digest = hashlib.sha256(splits).hexdigest()[:8]
        source = mlf.redact(json.dumps({"uri": root}))
        return [mlf.DatasetInput(mlf.Dataset(name, digest, "local", source))]

    def _write_trial(self, record: TrialRecord, order: str) -> None:
        run = self._run
        client = self._client
        trial_id = record.trial_id
        pruned = f" (pruned {record.step})" if record.outcome == "pruned" else ""
        label = f"{trial_label(record)}{pruned}"  # short: parameters are columns
        error = record.error or ""
        if len(error) > mlf.MAX_CHARS:  # the frames where it was raised are the last ones
            begin = f"{record.error_line[:500]}\n...\n"
            error = begin + error[len(begin) - mlf.MAX_CHARS :]
        own = {
            mlf.PARENT_TAG: self._parent_id,
            "search_id": run.history.run_id,
            "trial_id": trial_id,
            "kind": "zero_shot" if trial_id == ZERO_SHOT else record.kind,
        }
        tags = {
            "search": run.name,
            "method": run.method(record),
            "outcome": record.outcome,
            "error": error,
            "reason": record.reason,
            "returns": str(record.returns or ""),
            "order": order,
        }
        if trial_id not in self._runs:
            start_ms = round(1000 * (record.started_at or run.history.began_at))
            at_start = own | self._origin()
            created = client.create_run(self._experiment_id, start_ms, at_start, label)
            self._runs[trial_id] = str(created.info.run_id)
        if trial_id not in self._written:  # MLflow keeps one of several equal inputs
            client.log_inputs(self._runs[trial_id], self._inputs)
        run_id = self._runs[trial_id]
        sent = self._sent.get(trial_id, set())
        new = [report for report in record.reports if report.at not in sent]
        metrics = [metric for report in new for metric in self._points(report)]
        params = {} if trial_id == ZERO_SHOT else record.params or run.file.reference_params
        client.log_batch(run_id, metrics, mlf.params_of(params), mlf.tags_of(own | tags))
        client.update_run(run_id, STATUS[record.outcome], label)
        if record.ended_at is not None:
            client.set_terminated(run_id, STATUS[record.outcome], round(1000 * record.ended_at))
        self._sent[trial_id] = {report.at for report in record.reports}
        self._written[trial_id] = record, order

    def _write_parent(self, outcome: str) -> None:
        run = self._run
        client = self._client
        at = run.history.last_at
        share_view(client, self._experiment_id, run)
        found = run.conclusion
        tags = {"outcome": outcome, "mlflow.note.content": "\n\n".join(found.lines)}
        best = found.best
        metrics: list[Metric] = []
        if best is not None and outcome != "running":
            # Tags, not params: a resumed search may find better ones.
            tags |= {f"best/{key}": str(value) for key, value in best.params.items()}
            tags["best/trial"] = best.trial_id
            values = {f"best/{name}": value for name, value in self._shown(best.metrics).items()}
            metrics = mlf.metrics_of(values, best.step, at)
        if found.model is not None:
            tags["model"] = made_of(found.model)
            tested = {f"{MODEL}/{n}": v for n, v in found.model.test.items() if n.endswith("acc")}
            metrics += mlf.metrics_of(tested, 0, at)
        if found.confirmation is not None:
            metrics += mlf.metrics_of(
                _over_fresh_seeds(found.confirmation), run.file.trial.steps, at
            )
        client.log_batch(self._parent_id, metrics, tags=mlf.tags_of(tags))
        if outcome == "running":
            client.update_run(self._parent_id, STATUS[outcome])
            return
        client.set_terminated(self._parent_id, STATUS[outcome], round(1000 * at))
        for key in client.get_run(self._parent_id).data.tags.keys() - tags.keys():
            if key.startswith("best/"):  # the best before a resume was of another method
                client.delete_tag(self._parent_id, key)

    def _upload(self) -> None:
        """Copy tables, report, configuration and environment to the parent's artifacts."""
        folder, client = self._run.folder, self._client
        for path in (*folder.glob("*.parquet"), *(folder / REPORT_FOLDER).glob("*")):
            client.log_artifact(self._parent_id, str(path))
        if (path := folder / CONFIRM_FOLDER / "results.parquet").is_file():
            client.log_artifact(self._parent_id, str(path), CONFIRM_FOLDER)
        for name in (CONFIG_FILE, ENVIRONMENT_FILE):
            if (path := folder / name).is_file():
                text = mlf.redact(path.read_text(encoding="utf-8"))
                client.log_text(self._parent_id, text, name)

    def _points(self, report: Report) -> Iterator[Metric]:
        """A report, and the training curve since the last one.

        The last point of the curve is at the report's step, and has its figures in six digits.
        """
        curve = report.train_curve
        points = {int(report.metrics[STEP]): dict(report.metrics)}
        for values in zip(*curve.values(), strict=True):
            point = dict(zip(curve, values, strict=True))
            points.setdefault(int(point[STEP]), {}).update(point)
        for step, point in sorted(points.items()):
            yield from mlf.metrics_of(self._shown(point), step, report.at)

    def _shown(self, report: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a report that MLflow gets, `main_metrics` first.

        MLflow 3.17 shows metrics in order of arrival, and compares runs by the first one.
        """
        names = main_metrics(self._run)
        return {name: report[name] for name in names if name in report and name != STEP}


def _over_fresh_seeds(confirmation: Confirmation) -> dict[str, float]:
    """The means of test accuracies over fresh seeds, as `confirmed/trial-007/id_test/acc`."""
    models = [one.trial_id for one in confirmation.configurations]
    return {
        f"confirmed/{name}/{metric}": mean
        for name in models
        for metric, mean in confirmation.means(name).items()
        if confirmation.shares(metric)  # of accuracies alone
    }
