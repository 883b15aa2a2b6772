"""What Ray Tune runs: processes that keep workers and train one trial after the other in them.

The process of a slot imports this module. So it imports neither MLflow, matplotlib nor open_clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray import tune

from trainers.checkpoints.storage import prepare_folder
from trainers.data.store import Store, open_store
from trainers.errors import (
    ConfigError,
    MicroBatchTooLarge,
    TrainingDiverged,
    storage_failures,
)
from trainers.exchange import Request
from trainers.ray_trainer import location
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import SLOT
from tuning.execution.kept_workers import KeptWorkers
from tuning.log.errors import error_text, is_rays, root_causes, storage_failure
from tuning.log.messages import MESSAGE, Failed, Message, Reported, SteppedBack
from tuning.log.paths import trial_path


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
    return tune.with_resources(type("Slot", (Slot,), common), SLOT)


class Slot(tune.Trainable):
    """One of the trials that run at the same time. Its workers train one trial after the other.

    Tune ends a process whose `step` has raised. So a failed trial is a message like others, and the
    process stays. Tune gets an error if the process is lost, and if the storage failed, which ends
    the search.
    """

    storage_path: str
    resources: ResourcesConfig
    final_split: str | None
    plugins: Mapping[str, str]

    def setup(self, config: dict[str, Any]) -> None:
        """Start the first trial; its workers start at the first step."""
        self._workers: KeptWorkers | None = None
        self._most_images: int | None = None  # at once, of which several workers do not fit more
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on to another trial."""
        if self._workers is not None and self._workers.are_busy and self.resources.workers > 1:
            # The trial before was stopped in the middle of a training. Only a worker that is alone
            # goes on from there: several wait for each other.
            self._workers.end()
            self._workers = None
        # The name is stable: a resumed trial finds its checkpoints by it.
        self._name, self._trial = trial_path(new_config["trial_id"]), new_config["trial"]
        self._folder: Store | None = None
        return True

    def step(self) -> dict[str, Any]:
        """The next message of the trial, and beside it the metrics of a report."""
        message = self._next_message()
        match message:
            case Reported():
                return {**message.metrics, MESSAGE: message, "done": message.is_last}
            case _:
                return {MESSAGE: message, "done": isinstance(message, Failed)}

    def cleanup(self) -> None:
        """End the workers, because the search has no more trials for them."""
        if self._workers is not None:
            self._workers.end()

    def _next_message(self) -> Message:
        """Ask the workers; new ones, if there are none."""
        try:
            if self._folder is None:
                with storage_failures(self.storage_path, "cannot be used"):
                    self._folder = open_store(self.storage_path).at(self._name)
                prepare_folder(self._folder)
            if self._workers is None:
                options = self.resources.per_trial()
                self._workers = KeptWorkers(self.resources.hang_after_s, options)
            request = Request(
                location(self._folder),
                self._trial,
                self.final_split,
                self.plugins,
                self._most_images,
            )
            answer = self._workers.ask(request)
        except Exception as error:
            return self._failed(error)
        return answer

    def _failed(self, error: Exception) -> Message:
        """End the workers after an error of theirs, which is raised if the storage failed.

        Else the driver decides whether the trial goes on.
        """
        workers = self._workers
        self._workers = None
        self._folder = None
        if workers is not None:
            workers.end()
        if storage_failure(error):
            raise error
        causes = [*root_causes(error)]
        final = [one for one in causes if isinstance(one, ConfigError | TrainingDiverged)]
        if workers is None or final:
            return Failed(error_text(final[0] if final else error))
        sizes = [e.micro_batch_size for e in causes if isinstance(e, MicroBatchTooLarge)]
        fits_less = bool(sizes) and min(sizes) < (self._most_images or math.inf)
        if fits_less:
            self._most_images = min(sizes)
        is_own = not any(map(is_rays, causes))
        return SteppedBack(error_text(error), is_own, is_counted=not fits_less)
