"""The scheduler of Ray Tune that applies the stopping rules of `early_stopping`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuning.algorithms.early_stopping import (
    Asha,
    Hyperband,
    MedianRule,
    PerGroupRule,
    StoppingRule,
    rung_ladder,
)
from tuning.algorithms.objectives import Objective
from tuning.config.schema import AshaConfig, HyperbandConfig, MedianConfig, SchedulerConfig
from tuning.execution.ray_errors import check_own_failure
from tuning.runs.records import METHOD_KEY, STEP, TrialRecord, trial_number

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
        new_rule: makes a rule without observations; None lets every trial run to its end.
        earlier: trials of earlier sessions; the rules see their curves again.
        method: method of trials whose parameters name none.
    """

    def __init__(
        self,
        new_rule: Callable[[], StoppingRule | None],
        objectives: Sequence[Objective],
        total_steps: int,
        earlier: Iterable[TrialRecord] = (),
        method: str | None = None,
    ) -> None:
        super().__init__()
        self._objectives, self._total_steps, self._method = objectives, total_steps, method
        self._methods: dict[int, Any] = {}  # by the number of the trial
        self._rule = PerGroupRule(new_rule, self._methods.__getitem__)
        for record in earlier:
            if record.kind == "trial":
                for report in record.curve:
                    self._should_continue(record.number, record.params, report)

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
        goes_on = self._should_continue(number, trial.config["params"], result)
        at_end = result[STEP] >= self._total_steps
        return str(TrialScheduler.CONTINUE if goes_on or at_end else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Check a failure before it is recorded and the sampler learns of it.

        Raises:
            StorageFailed: the storage failed, so every trial would fail. This ends the search.
        """
        check_own_failure(trial)

    def _should_continue(self, number: int, params: Mapping[str, Any], report: Any) -> bool:
        self._methods[number] = params.get(METHOD_KEY, self._method)
        found = [report.get(objective.metric, math.nan) for objective in self._objectives]
        signed = tuple(o.signed(float(v)) for o, v in zip(self._objectives, found, strict=True))
        values = signed if all(map(math.isfinite, signed)) else None
        return self._rule.should_continue(number, int(report[STEP]), values)


def create_rule(config: SchedulerConfig, total_steps: int) -> StoppingRule | None:
    """The stopping rule of a configuration; None if every trial runs to its end."""
    if isinstance(config, MedianConfig):
        return MedianRule(config.grace_steps, config.min_trials)
    if not isinstance(config, AshaConfig | HyperbandConfig):
        return None
    rungs = rung_ladder(config.grace_steps, config.reduction_factor, total_steps)
    if isinstance(config, HyperbandConfig):
        return Hyperband(rungs, config.reduction_factor, config.brackets)
    return Asha(rungs, config.reduction_factor)
