"""What Ray Tune runs: processes that keep workers and train one trial after the other in them.

The driver of a slot imports this module. So it imports neither MLflow, matplotlib nor open_clip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray import tune

from trainers.checkpoints.storage import prepare_folder
from trainers.data.storage import Store, open_store
from trainers.errors import TrainingDiverged, storage_failures
from trainers.exchange import Answer, Request
from trainers.ray_trainer import location
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import DRIVER
from tuning.execution.retries import Attempts, FaultyNodes, TrainingHangs
from tuning.execution.warm_workers import WarmWorkers
from tuning.runs.errors import error_text, storage_failure
from tuning.runs.records import ERROR, NOTICE, STEP, TRAIN_CURVE, WAITS


def trainable(
    storage_path: str,
    resources: ResourcesConfig,
    final_split: str | None,
    plugins: Mapping[str, str],
) -> Any:
    """The class for `tune.Tuner`, with the resources of its process.

    Args:
        storage_path: folder or URL of the checkpoints of all trials.
        final_split: evaluated once, after the last step of each trial.
        plugins: texts of plug-in files as the search has imported them. Workers import these.
    """
    common = {
        "storage_path": storage_path,
        "resources": resources,
        "final_split": final_split,
        "plugins": plugins,
    }
    return tune.with_resources(type("Slot", (Slot,), common), DRIVER)


class Slot(tune.Trainable):
    """One of the trials that run at the same time. Its workers train one trial after the other.

    Tune ends a process whose `step` has raised. So a failed trial is reported, with the reason
    under the key `ERROR`, and the process stays. Tune gets an error if the process is lost, and if
    the storage failed, which ends the search.
    """

    storage_path: str
    resources: ResourcesConfig
    final_split: str | None
    plugins: Mapping[str, str]

    def setup(self, config: dict[str, Any]) -> None:
        """Start the first trial; its workers start at the first step."""
        self._workers: WarmWorkers | None = None
        self._nodes = FaultyNodes(self.resources)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on to another trial."""
        # The name is stable: a resumed trial finds its checkpoints by it.
        self._name, self._trial = f"train-{new_config['trial_id']}", new_config["trial"]
        self._attempts = Attempts(new_config["trial_id"], self._nodes)
        self._folder: Store | None = None
        return True

    def step(self) -> dict[str, Any]:
        """The next report of the trial, how far it is, or why it has failed or is repeated."""
        try:
            try:
                answer = self._next_answer()
            except Exception as error:
                workers, self._workers, self._folder = self._workers, None, None
                if workers is None:
                    raise
                workers.end()
                return {NOTICE: self._attempts.failed(error, workers.stacks)}  # Tune asks again
            if answer.diverged is not None:
                raise TrainingDiverged(answer.diverged)
            if not answer.metrics:
                return {TRAIN_CURVE: answer.train_curve, WAITS: answer.waits}
            is_last = answer.metrics[STEP] >= json.loads(self._trial)["steps"]
            if is_last:
                self._nodes.finished()
            return {**answer.metrics, TRAIN_CURVE: answer.train_curve, "done": is_last}
        except Exception as error:
            if storage_failure(error):
                raise
            notice = {NOTICE: f"{self._name}: {error}"} if isinstance(error, TrainingHangs) else {}
            return {"done": True, ERROR: error_text(error), **notice}

    def cleanup(self) -> None:
        """End the workers, because the search has no more trials for them."""
        if self._workers is not None:
            self._workers.end()

    def _next_answer(self) -> Answer:
        """Ask the workers; new ones, if there are none."""
        if self._folder is None:
            with storage_failures(self.storage_path, "cannot be used"):
                self._folder = open_store(self.storage_path).at(self._name)
            prepare_folder(self._folder)
        if self._workers is None:
            options = self.resources.per_trial() | self._nodes.placement()
            self._workers = WarmWorkers(self.resources.hang_after_s, options)
        request = Request(location(self._folder), self._trial, self.final_split, self.plugins)
        return self._workers.ask(request)
