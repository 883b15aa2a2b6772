"""The scheduler of Ray Tune that stops trials where a pruner says so."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from ray.tune import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuning.algorithms.studies import Studies
from tuning.runs.callbacks import NotPickled
from tuning.runs.errors import error_of, storage_failure
from tuning.runs.records import STEP

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class PrunerScheduler(NotPickled, FIFOScheduler):
    """Asks the studies at each report whether a trial goes on. Trials that the user has stopped do
    not.

    A trial at its last step ends by itself: stopping it there would kill the workers while they
    write the last checkpoint.
    """

    def __init__(self, studies: Studies, total_steps: int, stopped: Container[str] = ()) -> None:
        super().__init__()
        self._studies, self._total_steps, self._stopped = studies, total_steps, stopped

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """CONTINUE or STOP. A result without a step is no report of an evaluation."""
        trial_id = trial.config["trial_id"]
        if STEP not in result:
            return str(TrialScheduler.CONTINUE)
        goes_on = self._studies.goes_on(trial_id, result) and trial_id not in self._stopped
        at_end = result[STEP] >= self._total_steps
        return str(TrialScheduler.CONTINUE if goes_on or at_end else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Check a failure before it is recorded and the sampler learns of it.

        Raises:
            StorageFailed: the storage failed, so every trial would fail. This ends the search.
            TuneError: the trial did not fail, but the recorder of its end did.
        """
        error = error_of(trial)
        if error is None:
            raise TuneError(f"the end of {trial} could not be recorded")  # Python adds the cause
        if failure := storage_failure(error):
            raise failure
