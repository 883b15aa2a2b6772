"""Ray Tune's face of the stopping rules: our own step counter, references left alone."""

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
    Values,
    rung_ladder,
)
from tuning.algorithms.objectives import Objective
from tuning.config.schema import AshaConfig, HyperbandConfig, MedianConfig, SchedulerConfig
from tuning.execution.ray_errors import check_own_failure
from tuning.runs.records import (
    METHOD_KEY,
    REFERENCE_KEY,
    STEP,
    TRIAL_KEY,
    TrialRecord,
    trial_number,
)

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class StepScheduler(FIFOScheduler):
    """Stops trials by a rule on optimiser steps; lets references and finished trials be.

    A reference is there to be compared with, so it must see its end, and its scores must not move
    the rule either. A trial at its last step ends by itself: stopping it there would tear down the
    workers while they write the last checkpoint. Where methods are compared, each has a rule of its
    own: one that starts slowly must not be stopped by the others.

    Ray's own schedulers count its iterations, which start anew after a resume, forget their rungs
    when restored, and take one objective.

    Args:
        new_rule: a rule that has heard nothing yet; None lets every trial run to its end.
        objectives: what the rule is told of, at every report.
        total_steps: of a trial that nothing stops.
        earlier: trials of earlier sessions, whose curves the rules hear again.
        method: of trials whose proposal names none.
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
                    self._keeps(record.number, record.params, report)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The next one that waits; Ray's own looks through all that have ended, at every step."""
        waiting = (t for t in tune_controller.get_live_trials() if t.status == Trial.PENDING)
        return next(waiting, None)

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """CONTINUE or STOP."""
        if REFERENCE_KEY in trial.config or STEP not in result:
            return str(TrialScheduler.CONTINUE)
        number = trial_number(trial.config[TRIAL_KEY])
        keeps = self._keeps(number, trial.config, result) or result[STEP] >= self._total_steps
        return str(TrialScheduler.CONTINUE if keeps else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """The first to hear of a failure, before the sampler learns that the point is a bad one.

        Raises:
            StorageFailed: there is no room for any trial: what is raised here ends the search.
        """
        check_own_failure(trial)

    def _keeps(self, number: int, params: Mapping[str, Any], report: Any) -> bool:
        self._methods[number] = params.get(METHOD_KEY, self._method)
        return self._rule.should_continue(
            number, int(report[STEP]), _signed(self._objectives, report)
        )


def create_rule(config: SchedulerConfig, total_steps: int) -> StoppingRule | None:
    """The rule of that configuration; None where every trial runs to its end."""
    if isinstance(config, MedianConfig):
        return MedianRule(config.grace_steps, config.min_trials)
    if not isinstance(config, AshaConfig | HyperbandConfig):
        return None
    rungs = rung_ladder(config.grace_steps, config.reduction_factor, total_steps)
    if isinstance(config, HyperbandConfig):
        return Hyperband(rungs, config.reduction_factor, config.brackets)
    return Asha(rungs, config.reduction_factor)


def _signed(objectives: Sequence[Objective], report: Any) -> Values | None:
    values = [report.get(objective.metric) for objective in objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return tuple(o.signed(float(v)) for o, v in zip(objectives, values, strict=True))
