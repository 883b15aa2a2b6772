"""The scheduler of Ray Tune that applies the stopping rules of `early_stopping`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuning.algorithms.rung_check import SearchRule
from tuning.runs.errors import check_own_failure
from tuning.runs.records import STEP, TrialRecord, trial_number

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class StepScheduler(FIFOScheduler):
    """Stops trials by a rule on optimiser steps.

    References are never stopped and never compared with. A trial at its last step ends by itself:
    stopping it there would kill the workers while they write the last checkpoint. If methods are
    compared, each has a rule of its own, so that a slow start is not held against a method.

    The schedulers of Ray Tune 2.60 count Tune's iterations, which restart after a resume, lose
    their rungs when restored, and take a single objective.

    Args:
        rule: without observations.
        earlier: trials of earlier sessions, whose curves the rule sees again.
        announce: prints a line, once it is known which rungs may stop trials.
    """

    def __init__(
        self,
        rule: SearchRule,
        total_steps: int,
        earlier: Iterable[TrialRecord] = (),
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self._rule, self._total_steps, self._announce = rule, total_steps, announce
        rule.replay(earlier)
        announce(rule.describe())
        self._announced = rule.describe_checks()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the scheduler. Nothing is ever restored from that."""
        return {}

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The next pending trial. Ray's own method loops over all ended trials at every step."""
        waiting = (t for t in tune_controller.get_live_trials() if t.status == Trial.PENDING)
        return next(waiting, None)

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """CONTINUE or STOP."""
        number = trial_number(trial.config["trial_id"])
        if number < 0 or STEP not in result:  # a reference, or no report of an evaluation
            return str(TrialScheduler.CONTINUE)
        goes_on = self._rule.should_continue(number, trial.config["params"], result)
        at_end = result[STEP] >= self._total_steps
        if at_end:
            lines = self._rule.describe_checks()
            for line in lines:
                if line not in self._announced:
                    self._announce(line)
            self._announced = lines
        return str(TrialScheduler.CONTINUE if goes_on or at_end else TrialScheduler.STOP)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        """Take the last report into account: if it is `done`, Tune brings it here alone."""
        self.on_trial_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Check a failure before it is recorded and the sampler learns of it.

        Raises:
            StorageFailed: the storage failed, so every trial would fail. This ends the search.
        """
        check_own_failure(trial)
