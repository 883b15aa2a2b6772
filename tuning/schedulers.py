"""Early stopping on our own step counter, with references left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from tuning.config import AshaConfig, NoSchedulerConfig, ObjectiveConfig
from tuning.records import REFERENCE_KEY, STEP

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class StepAsha(AsyncHyperBandScheduler):
    """ASHA that counts optimiser steps and lets references and finished trials be.

    A reference is there to be compared with, so it must see its end; and its scores must not move
    the rungs either. A trial at its last step ends by itself: stopping it there would tear down
    the workers while they write the last checkpoint.
    """

    def __init__(self, config: AshaConfig, objective: ObjectiveConfig, total_steps: int) -> None:
        super().__init__(
            time_attr=STEP,
            metric=objective.metric,
            mode=objective.mode,
            max_t=total_steps,
            grace_period=config.grace_steps,
            reduction_factor=config.reduction_factor,
            stop_last_trials=False,
        )
        self.total_steps = total_steps

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Keep the metric and mode given at construction."""
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Take a trial in, unless it is a reference."""
        if REFERENCE_KEY not in trial.config:
            super().on_trial_add(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """CONTINUE or STOP."""
        if trial.trial_id not in self._trial_info or result.get(STEP, 0) >= self.total_steps:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        """Forget the trial; its scores stay in the rungs."""
        if trial.trial_id in self._trial_info:
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Forget the trial."""
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """Forget the trial."""
        self._trial_info.pop(trial.trial_id, None)


def create_scheduler(
    config: AshaConfig | NoSchedulerConfig, objective: ObjectiveConfig, total_steps: int
) -> TrialScheduler:
    """The scheduler of that configuration."""
    if isinstance(config, NoSchedulerConfig):
        return FIFOScheduler()
    return StepAsha(config, objective, total_steps)
