"""The Optuna studies of a search: what its samplers learn from, and what optuna-dashboard shows.

The studies are derived from the journal of the run folder. Every session makes them anew and then
keeps them up to date, so nothing has to be reconciled after a kill.

The values of a study are those of `SearchRecord.sampler_objectives`: by default, the NLL that
belongs to an accuracy objective. Trials are selected by the objective and the constraints, whose
values are user attributes of the Optuna trial under the names of the metrics.

A search over one space has one study. A search that compares methods has one study for each method.
A common sampler would draw the parameters of a method that is worse overall at random, because all
its trials are among the bad ones, and the result of a method would depend on the others.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GridSampler, QMCSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search_spaces import SearchSpace
from tuning.algorithms.optuna_storage import OptunaFile
from tuning.algorithms.samplers import create_sampler, grid_axes, resolve_sampler
from tuning.config.schema import SamplerConfig
from tuning.runs.callbacks import Callback
from tuning.runs.records import METHOD_KEY, STEP, ParamValue, SearchRecord, TrialRecord

TRIAL_ID: Final = "trial_id"
"""User attribute of an Optuna trial: the name of the trial of the search."""
STATES: Final = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "stopped": TrialState.RUNNING,
    "running": TrialState.RUNNING,
}
_WORST = 1e9
"""Violation of a constraint whose metric a trial does not have. Optuna does not take infinity."""


@dataclass
class MethodStudy:
    """The study of one method, or of the whole search."""

    search: SearchRecord
    space: SearchSpace
    study: optuna.Study
    method: str | None = None
    """The method of its trials; None if the search does not compare methods."""
    grid: deque[Mapping[str, ParamValue]] | None = None
    """Remaining points of a grid, which replace the sampler."""
    is_exhausted: bool = False
    """Whether the user's sampler has stopped the study: all of its points were tried."""
    num_trials: int = 0
    """Trials of this method so far, proposed ones included."""
    bests: dict[str, float] = field(default_factory=dict)
    """Bests of the constraints' metrics: each method is tuned independently of the others."""
    sampler_name: str = ""
    """As configured, or the class of the user's object."""
    is_corrected: bool = False
    """Whether the sampler also models how its values differ from the objective."""
    startup_trials: int = 1
    """Complete trials from which on the sampler uses its model; unknown of a user's object."""
    num_observed: int = 0
    """Complete trials of earlier searches that it knows."""
    num_first: int = 0
    """Points of earlier searches that are tried first."""
    is_warm: bool = False
    """Whether it knows so many of them that it needs no prior."""

    def owns(self, record: TrialRecord) -> bool:
        """Whether the trial has this study's method. Its parameters may be outside of the space."""
        method = self.method or self.search.configured_method
        return record.kind == "trial" and self.search.method(record) == method

    def params(self, point: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """The parameters of a trial at a point of the space, with the method if it is searched."""
        return {**point} if self.method is None else {METHOD_KEY: self.method, **point}

    def ask(self, trial_id: str) -> optuna.Trial:
        """A new trial, at the next point of the grid or of the sampler."""
        self.num_trials += 1
        if self.grid:
            self.study.enqueue_trial(dict(self.grid.popleft()))
        trial = self.study.ask(fixed_distributions=self.space.distributions())
        trial.set_user_attr(TRIAL_ID, trial_id)
        return trial

    def add(
        self,
        record: TrialRecord,
        bests: Mapping[str, float],
        user_attrs: Mapping[str, str],
        sampler_state: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a trial that this study has not proposed; its parameters are a point of the space."""
        state, values = self._result(record)
        complete = state == TrialState.COMPLETE
        metric = self.search.sampler_objectives[0].metric
        curve = record.curve if len(self.search.sampler_objectives) == 1 else ()
        self.study.add_trial(
            optuna.create_trial(
                state=state,
                values=values if complete else None,
                params=dict(record.params),
                distributions=self.space.distributions(),
                user_attrs={**user_attrs, **self._selection_values(record)},
                system_attrs=dict(sampler_state or {}),
                intermediate_values={
                    int(report[STEP]): float(report[metric])
                    for report in curve
                    if math.isfinite(report.get(metric, math.nan))
                },
                constraints=self._violations(record.last, bests) if complete else None,
            )
        )

    def report(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Pass the last report on. Optuna has intermediate values for single objectives only."""
        told = self.search.sampler_objectives
        value = record.last(told[0].metric)
        if value is None or len(told) > 1:
            return
        # Not Trial.report: it ignores the value of a step that a resumed trial repeats.
        self.study._storage.set_trial_intermediate_value(trial._trial_id, record.step, value)

    def tell(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Pass the end of a trial on."""
        self.bests = self.search.with_bests(self.bests, record)
        for metric, value in self._selection_values(record).items():
            trial.set_user_attr(metric, value)
        state, values = self._result(record)
        if state == TrialState.COMPLETE:
            for text, violation in self._violations(record.last, self.bests).items():
                trial.set_constraint(text, violation)
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=state)

    def _result(self, record: TrialRecord) -> tuple[TrialState, list[float] | None]:
        """The state of the Optuna trial, and the values of a complete one.

        Ray's OptunaSearch tells trials that the scheduler stopped as complete, with the value of
        their last rung. Here they are pruned. A trial without finite objectives, such as one whose
        loss diverged, is a failure.
        """
        state = STATES[record.outcome]
        found = [record.last(objective.metric) for objective in self.search.sampler_objectives]
        values = [value for value in found if value is not None]
        if len(values) < len(found) and state in (TrialState.COMPLETE, TrialState.PRUNED):
            return TrialState.FAIL, None
        return state, values

    def final_objective(self, trial: FrozenTrial) -> float:
        """The only objective of a complete trial, higher is better; NaN if it has none."""
        (objective,) = self.search.objectives
        return objective.signed(trial.user_attrs.get(objective.metric, math.nan))

    def violations(self, trial: FrozenTrial) -> dict[str, float]:
        """Violations of a complete trial by the bests of now. Optuna keeps those at its end."""
        return self._violations(trial.user_attrs.get, self.bests)

    def _selection_values(self, record: TrialRecord) -> dict[str, float]:
        """The metrics of objectives and constraints that the trial has."""
        metrics = [objective.metric for objective in self.search.objectives]
        metrics += [constraint.metric for constraint in self.search.constraints]
        found = {metric: record.last(metric) for metric in metrics}
        return {metric: value for metric, value in found.items() if value is not None}

    def _violations(
        self, last: Callable[[str], float | None], bests: Mapping[str, float]
    ) -> dict[str, float]:
        missed = self.search.violations(last, bests)
        return {text: min(violation, _WORST) for text, violation in missed.items()}


class Studies(Callback):
    """All studies of a search. As a callback, it passes the events of trials on to them."""

    def __init__(self, studies: Sequence[MethodStudy]) -> None:
        self.studies = studies
        # The running trials by their names. Unfinished trials of earlier sessions are among them.
        self._running = {
            trial.user_attrs[TRIAL_ID]: (study, optuna.Trial(study.study, trial._trial_id))
            for study in studies
            for trial in study.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        }

    def enqueue_initial_points(self, of_prior: Collection[str | None] = ()) -> None:
        """Let the initial points of each space be tried first, unless they were tried before.

        Args:
            of_prior: methods whose points are those of a prior. They are for the first trials only,
                of a study that knows little else.
        """
        for study in self.studies:
            points = study.space.initial_points
            # Trials are counted, not compared with the points of a prior, because these are other
            # points after `extend` has changed a bound or the seed.
            is_past_prior = study.is_warm or study.num_trials >= len(points) + study.num_first
            if study.grid is None and not (study.method in of_prior and is_past_prior):
                for point in points:
                    study.study.enqueue_trial(point, skip_if_exists=True)

    @property
    def num_waiting(self) -> int:
        """Number of first points that are still to be tried."""
        waiting = (TrialState.WAITING,)
        return sum(len(s.study.get_trials(deepcopy=False, states=waiting)) for s in self.studies)

    def describe(self) -> str:
        """One line: the samplers, and what they optimise."""
        methods: dict[str, list[str]] = {}
        for study in self.studies:
            methods.setdefault(study.sampler_name, []).append(study.method or "")
        chosen = "; ".join(
            name if len(methods) == 1 else f"{name} for {', '.join(of)}"
            for name, of in methods.items()
        )
        search = self.studies[0].search
        told, objectives = search.sampler_objectives, search.objectives
        line = f"{chosen}, optimises {' and '.join(o.metric for o in told)}"
        if any(study.is_corrected for study in self.studies):
            line += " (gp models the difference from the objective too)"
        if told != objectives:
            line += f"; trials are chosen by {' and '.join(o.metric for o in objectives)}"
        return line

    def propose(self, number: int, trial_id: str) -> TrialRecord | None:
        """The next trial of the method with the fewest trials, of equals the first.

        So numbers of trials differ by one at most, whatever became of the trials, and a method that
        an extended search adds catches up first.

        Returns:
            None if every grid is used up, or every sampler has stopped its study.
        """
        open_studies = [
            study for study in self.studies if study.grid != deque() and not study.is_exhausted
        ]
        if not open_studies:
            return None
        study = min(open_studies, key=lambda study: study.num_trials)
        trial = study.ask(trial_id)
        self._running[trial_id] = study, trial
        attributes = study.study._storage.get_trial(trial._trial_id).system_attrs
        state = {key: value for key, value in attributes.items() if key != "fixed_params"}
        return TrialRecord(
            trial_id,
            number,
            "trial",
            study.params(trial.params),
            is_first_point="fixed_params" in attributes and study.grid is None,
            sampler_state=state,
        )

    def trial_reported(self, record: TrialRecord) -> None:
        """Pass the report on, if the trial is known: references and outsiders are not."""
        if record.trial_id in self._running:
            study, trial = self._running[record.trial_id]
            study.report(trial, record)

    def trial_ended(self, record: TrialRecord) -> None:
        """Pass the end on."""
        if record.trial_id in self._running:
            study, trial = self._running.pop(record.trial_id)
            study.tell(trial, record)


def point_of(record: TrialRecord) -> dict[str, ParamValue]:
    """The parameters of a trial without its method."""
    return {key: value for key, value in record.params.items() if key != METHOD_KEY}


def is_inside(params: Mapping[str, object], space: SearchSpace) -> bool:
    """Whether the parameters are those of the space, each within its range."""
    distributions = space.distributions()
    try:
        return params.keys() == distributions.keys() and all(
            distribution._contains(distribution.to_internal_repr(params[key]))
            for key, distribution in distributions.items()
        )
    except ValueError:  # of to_internal_repr: the value is none of the choices
        return False


def create_studies(
    search: SearchRecord,
    space: SearchSpace,
    sampler: SamplerConfig | BaseSampler,
    storage: BaseStorage,
    run_id: str,
    records: Sequence[TrialRecord] = (),
) -> Studies:
    """Make the studies of a search anew from the records of its journal.

    Studies are found by the run's id, so they stay the same when the run folder is moved. With
    several methods, all samplers have the same seed: methods with equal spaces start equally.

    Args:
        space: trials outside of it are unknown to the sampler.
        sampler: a configuration, or a sampler of Optuna, of which each method gets a copy.
        records: all trials of earlier sessions. Unfinished ones are running in their study.
    """
    backend = getattr(storage, "_backend", None)
    with backend.bulk() if isinstance(backend, OptunaFile) else nullcontext():
        for name in optuna.get_all_study_names(storage):
            if name.endswith(f"-{run_id}"):
                optuna.delete_study(study_name=name, storage=storage)
        return Studies(
            [
                _create_study(search, method, part, sampler, storage, run_id, records)
                for method, part in space.parts().items()
            ]
        )


def _create_study(
    search: SearchRecord,
    method: str | None,
    space: SearchSpace,
    sampler: SamplerConfig | BaseSampler,
    storage: BaseStorage,
    run_id: str,
    records: Sequence[TrialRecord],
) -> MethodStudy:
    if isinstance(sampler, SamplerConfig):
        objectives = len(search.sampler_objectives)
        sampler = resolve_sampler(sampler, space, search.trials_per_method, objectives)
    name = search.name if method is None else f"{search.name}-{method}"
    study = optuna.create_study(
        study_name=f"{name}-{run_id}",
        storage=storage,
        directions=[
            "maximize" if o.mode == "max" else "minimize" for o in search.sampler_objectives
        ],
    )
    created = MethodStudy(search, space, study, method)

    # Samplers such as BruteForceSampler stop the study after their last point. The method of Optuna
    # 5.0 raises a RuntimeError outside of Study.optimize.
    def stop() -> None:
        created.is_exhausted = True

    study.stop = stop  # type: ignore[method-assign]
    own = [record for record in records if created.owns(record)]
    created.num_trials = len(own)
    created.bests = search.bests(own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([objective.metric for objective in search.sampler_objectives])
        if isinstance(sampler, BaseSampler):
            created.sampler_name = type(sampler).__name__
            study.sampler = sampler if method is None else copy.deepcopy(sampler)
            if own:  # it must not propose the points of the last session again
                study.sampler.reseed_rng()
        else:
            # The number of trials is part of the seed. With the same seed in every session, the
            # sampler would propose the points of the first session again.
            created.sampler_name = sampler.name
            created.startup_trials = sampler.startup_trials or 1
            is_auto = search.sampler_metric == "auto"
            differs = search.sampler_objectives != search.objectives
            created.is_corrected = is_auto and differs and sampler.name == "gp"
            objective = created.final_objective if created.is_corrected else None
            study.sampler = create_sampler(sampler, len(own), objective, created.violations)
    for record in own:
        point = point_of(record)
        if is_inside(point, space):
            of_point = replace(record, params=point)
            user_attrs = {TRIAL_ID: record.trial_id}
            created.add(of_point, created.bests, user_attrs, record.sampler_state)
    if isinstance(sampler, SamplerConfig) and sampler.name == "grid":
        sampler = GridSampler(grid_axes(space, sampler.grid_points), sampler.seed)
    if isinstance(sampler, GridSampler):
        # Only its points are used, since Optuna 5.0 would propose some again: those that run when
        # all have begun, those of enqueued trials, and all once an axis has another value.
        known: list[Mapping[str, ParamValue]] = [point_of(record) for record in own]
        created.grid = deque()
        for values in sampler._all_grids:
            named = zip(sampler._param_names, values, strict=True)
            # A user's grid has the names of all methods.
            wanted: dict[str, Any] = {n: v for n, v in named if n in space.parameters}
            if wanted not in known:
                known.append(wanted)
                created.grid.append(wanted)
        study.sampler = RandomSampler()
    # Continue a quasi-random sequence after the points of earlier sessions. Optuna 5.0 counts them
    # in the study, which is new here.
    trials = study.get_trials(deepcopy=False)
    if isinstance(study.sampler, QMCSampler) and trials:
        relative = study.sampler.infer_relative_search_space(study, trials[0])
        for _ in own if relative else ():
            study.sampler.sample_relative(study, trials[0], relative)
    return created
