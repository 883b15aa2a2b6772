"""What Ray Tune runs: processes that keep workers and train one trial after the other in them.

The driver of a slot imports this module. So it imports neither MLflow, matplotlib nor open_clip.
"""

from __future__ import annotations

import json
from typing import Any

from ray import tune

from trainers.checkpoints.storage import prepare_folder
from trainers.data.storage import Store
from trainers.errors import TrainingDiverged, storage_failures
from trainers.exchange import Answer, Request
from trainers.ray_trainer import location, open_storage
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import driver_options
from tuning.execution.ray_errors import in_one_line, storage_failure
from tuning.execution.retries import Attempts, FaultyNodes
from tuning.execution.warm_workers import WarmWorkers
from tuning.runs.records import ERROR, NOTICE, STEP, TIME, TRAIN_CURVE

OVERDUE = 10
"""A report is overdue if it takes so many times as long as the slowest one of the search before."""


def trainable(storage_path: str, resources: ResourcesConfig, final_split: str | None) -> Any:
    """The class for `tune.Tuner`, with the resources of its process.

    Args:
        storage_path: folder or URL of the checkpoints of all trials.
        final_split: evaluated once, after the last step of each trial.
    """
    common = {"storage_path": storage_path, "resources": resources, "final_split": final_split}
    slot, options = type("Slot", (Slot,), common), driver_options()
    return tune.with_resources(slot, {"memory": options["memory"], **options["resources"]})


class Slot(tune.Trainable):
    """One of the trials that run at the same time. Its workers train one trial after the other.

    Tune ends a process whose `step` has raised. So a failed trial is reported, with the reason
    under the key `ERROR`, and the process stays. Tune gets an error if the process is lost, and if
    the storage failed, which ends the search.
    """

    storage_path: str
    resources: ResourcesConfig
    final_split: str | None

    def setup(self, config: dict[str, Any]) -> None:
        """Start the first trial; its workers start at the first step."""
        self._slowest_s = 0.0
        self._workers: WarmWorkers | None = None
        self._nodes = FaultyNodes(self.resources)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on to another trial."""
        # The name is stable: a resumed trial finds its checkpoints by it.
        self._name, self._trial = f"train-{new_config['trial_id']}", new_config["trial"]
        self._slowest_s = max(self._slowest_s, new_config["slowest_report_s"])
        self._attempts = Attempts(new_config["trial_id"], self._nodes)
        self._folder: Store | None = None
        return True

    def step(self) -> dict[str, Any]:
        """The next report of the trial, how far it is, or why it has failed or is repeated."""
        try:
            try:
                answer = self._next_answer()
            except Exception as error:
                if self._workers is not None:
                    self._workers.end()
                self._workers = self._folder = None
                return {NOTICE: self._attempts.failed(error)}  # Tune asks again
            if answer.diverged is not None:
                raise TrainingDiverged(answer.diverged)
            if not answer.metrics:
                return {TRAIN_CURVE: answer.train_curve}
            self._slowest_s = max(self._slowest_s, answer.seconds)
            is_last = answer.metrics[STEP] >= json.loads(self._trial)["steps"]
            if is_last:
                self._nodes.finished()
            report = {**answer.metrics, TRAIN_CURVE: answer.train_curve}
            return {**report, "done": is_last, TIME: answer.seconds}
        except Exception as error:
            if storage_failure(error):
                raise
            return {"done": True, ERROR: in_one_line(error)}

    def cleanup(self) -> None:
        """End the workers, because the search has no more trials for them."""
        if self._workers is not None:
            self._workers.end()

    def _next_answer(self) -> Answer:
        """Ask the workers; new ones, if there are none."""
        hang_after_s = self.resources.hang_after_s
        limit_s = max(hang_after_s, OVERDUE * (self._slowest_s or hang_after_s))
        if self._folder is None:
            with storage_failures(self.storage_path, "cannot be used"):
                self._folder = open_storage(self.storage_path).at(self._name)
            prepare_folder(self._folder)
        if self._workers is None:
            self._workers = WarmWorkers(self.resources.per_trial() | self._nodes.placement())
        request = Request(location(self._folder), self._trial, self.final_split)
        return self._workers.ask(request, limit_s)
