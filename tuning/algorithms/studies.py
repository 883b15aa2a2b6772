"""The Optuna studies that propose the trials of a search, and that stop them early.

They live in memory. Every session makes them anew from the events of the journal, in their order.
Their values are those of `Goal.sampler_objectives`: by default, the NLL that belongs to an
accuracy. What optuna-dashboard shows is another study, see `tuning.views.dashboard`.

A search that compares methods has one study for each. A common sampler would draw the parameters of
a method that is worse overall at random, because all its trials are among the bad ones.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from typing import Any, Final

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from search_spaces.space import SearchSpace, Spaces
from tuning.algorithms.samplers import LEAST_FINISHED, create_sampler, resolve_sampler
from tuning.config.schema import SamplerConfig
from tuning.log.callbacks import Callback
from tuning.log.records import METHOD_KEY, STEP, ParamValue, TrialRecord
from tuning.results.goal import Goal

TRIAL_ID: Final = "trial_id"
"""User attribute of an Optuna trial: the name of the trial of the search."""
STATES: Final = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "stopped": TrialState.RUNNING,
    "running": TrialState.RUNNING,
}
_WORST: Final = 1e9
"""Violation of a constraint whose metric a trial does not have. Optuna does not take infinity."""


@dataclass
class MethodStudy:
    """The study of one method, or of the whole search."""

    goal: Goal
    space: SearchSpace
    study: optuna.Study
    method: str | None = None
    """The method of its trials; None if the search does not compare methods."""
    config: SamplerConfig | None = None
    """Of the sampler; None for an object of the user."""
    pruner: BasePruner | None = None
    """Not that of the Optuna study: there, Hyperband shows the sampler its own bracket alone."""
    queue: deque[Mapping[str, ParamValue]] = field(default_factory=deque)
    """Points that are tried next, before the sampler proposes any."""
    wanted: deque[Mapping[str, ParamValue]] = field(default_factory=deque)
    """Points that the user has enqueued while the search ran: tried before all others."""
    is_warm: bool = False
    """Whether earlier searches replace the first points of this one."""
    num_trials: int = 0
    """Trials of this method so far, proposed ones included."""
    is_stopped: bool = False
    """Whether the user's sampler has tried all of its points."""
    finished: dict[int, TrialRecord] = field(default_factory=dict)
    """Number in the study -> complete trial."""

    @property
    def is_grid(self) -> bool:
        """Whether the points of a grid replace the sampler."""
        return self.config is not None and self.config.name == "grid"

    def ask(self, trial_id: str, point: Mapping[str, ParamValue] | None = None) -> optuna.Trial:
        """A new trial, at a point or where the sampler proposes."""
        if self.config is not None:
            # Anew for each proposal, which so depends on the seed and the trials alone: a resumed
            # search proposes what it would have proposed without the interruption.
            self.study.sampler = create_sampler(self.config, self.num_trials)
        self.num_trials += 1
        if point is not None:
            self.study.enqueue_trial(dict(point))
        # A bound relative to the best of now is a number for this proposal. The trials of a study
        # in memory can be changed, also those that have ended.
        trials = self.study.get_trials(deepcopy=False)
        bounded = self.finished if self.goal.constraints else {}
        bests = self.goal.bests(bounded.values())
        for number, record in bounded.items():
            for text, violation in violations(self.goal, record, bests).items():
                # Not set_constraint, which keeps the first value.
                trials[number].system_attrs[f"constraints:{text}"] = violation
        trial = self.study.ask(fixed_distributions=self.space.distributions())
        trial.set_user_attr(TRIAL_ID, trial_id)
        return trial

    def goes_on(self, trial: optuna.Trial, report: Mapping[str, Any]) -> bool:
        """Take a report into account, and return whether the trial continues."""
        if len(self.study.directions) > 1:  # Optuna stops no trial, and keeps no reports
            return True
        step = int(report[STEP])
        value = float(report.get(self.goal.sampler_objectives[0].metric, math.nan))
        known = self.study.get_trials(deepcopy=False)[trial.number]
        if known.intermediate_values.get(step) == value:
            return True  # decided before: a resumed trial repeats its last report
        # Not Trial.report: it ignores the value of a step that a resumed trial repeats.
        known.intermediate_values[step] = value
        if self.pruner is None:
            return True
        # Before enough trials have finished, the pruner takes notes, but nothing is stopped.
        stops = self.pruner.prune(self.study, known)
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return not stops or len(complete) < LEAST_FINISHED

    def tell(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Pass the end of a trial on."""
        state, values = self._result(record)
        if state == TrialState.COMPLETE:
            self.finished[trial.number] = record.compact
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=state)

    def _result(self, record: TrialRecord) -> tuple[TrialState, list[float] | None]:
        """The state of the Optuna trial, and the values of a complete one.

        A trial without finite objectives, such as one whose loss diverged, is a failure.
        """
        state = STATES[record.outcome]
        found = [record.last(objective.metric) for objective in self.goal.sampler_objectives]
        values = [value for value in found if value is not None]
        if len(values) < len(found) and state in (TrialState.COMPLETE, TrialState.PRUNED):
            state = TrialState.FAIL
        return state, values if state == TrialState.COMPLETE else None


class Studies(Callback):
    """All studies of a search. As a callback, it passes the events of trials on to them."""

    def __init__(
        self, studies: Sequence[MethodStudy], pruner: str = "none", most_trials: int = 0
    ) -> None:
        self.studies = studies
        self.pruner = pruner
        self._most_trials = most_trials
        self._running: dict[str, tuple[MethodStudy, optuna.Trial]] = {}
        self._references: dict[str, tuple[MethodStudy, optuna.Trial]] = {}
        """Those that stand for a first point."""

    def enqueue_first_points(self) -> None:
        """Let the points of each grid, or the initial points of each space, be tried first."""
        for study in self.studies:
            if study.is_grid and study.config is not None:
                axes = study.space.grid(study.config.grid_points)
                points = (dict(zip(axes, of, strict=True)) for of in product(*axes.values()))
                earlier = list(study.queue)
                new = (point for point in points if point not in earlier)
                # A whole grid may have billions of points.
                study.queue.extend(islice(new, self._most_trials))
            elif not study.is_warm:
                study.queue.extend(study.space.initial_points)

    def take_reference(self, name: str, settings: Mapping[str, Any]) -> None:
        """Let a reference stand for a first point with its settings, which would train it again.

        Args:
            name: of the reference, which is that of its method.
            settings: its configuration by dotted key.
        """
        for study in self.studies:
            same = [p for p in study.queue if all(settings.get(k) == v for k, v in p.items())]
            if study.method == name and same:
                study.queue.remove(same[0])
                self._references[name] = study, study.ask(name, same[0])

    def enqueue(self, params: Mapping[str, ParamValue]) -> None:
        """Let a point, with its method, be tried next, unless it lies outside of the space."""
        point = {key: value for key, value in params.items() if key != METHOD_KEY}
        for study in self.studies:
            if study.method == params.get(METHOD_KEY) and is_inside(point, study.space):
                found = {key: p.parse(point[key]) for key, p in study.space.parameters.items()}
                study.wanted.append(found)

    def replay(self, events: Iterable[tuple[str, TrialRecord]]) -> None:
        """Take `trial_events` of earlier sessions into account.

        Unfinished trials are running then.
        """
        events = list(events)
        # Trials are proposed in the order of their numbers, and may start in another one.
        first = {record.number: record for kind, record in reversed(events) if kind == "started"}
        proposed = deque(first[number] for number in sorted(first))
        for kind, record in events:
            while kind == "started" and proposed and proposed[0].number <= record.number:
                self._ask_again(proposed.popleft())
            if kind == "report":
                self.goes_on(record.trial_id, record.metrics)
            elif kind == "ended" and record.is_final:
                self.trial_ended(record)

    def _ask_again(self, record: TrialRecord) -> None:
        point = point_of(record)
        for study in self.studies:
            if record.kind == "trial" and record.method == study.method:
                if record.is_first_point and point in study.wanted:
                    study.wanted.remove(point)
                elif point in study.queue:
                    study.queue.remove(point)
                elif record.is_first_point and study.queue and not study.is_grid:
                    study.queue.popleft()  # with another seed, a prior has other points
                if not is_inside(point, study.space):
                    study.num_trials += 1
                    continue
                self._running[record.trial_id] = study, study.ask(record.trial_id, point)

    @property
    def num_waiting(self) -> int:
        """Number of first points that are still to be tried."""
        return sum(len(study.queue) for study in self.studies if not study.is_grid)

    def describe(self) -> str:
        """One line: the samplers, and what they optimise."""
        names = (
            s.config.name if s.config else type(s.study.sampler).__name__ for s in self.studies
        )
        told = [objective.metric for objective in self.studies[0].goal.sampler_objectives]
        return f"{' and '.join(dict.fromkeys(names))}, optimises {' and '.join(told)}"

    def propose(self, number: int, trial_id: str) -> TrialRecord | None:
        """The next trial of the method with the fewest trials, of equals the first.

        So numbers of trials differ by one at most, whatever became of the trials.

        Returns:
            None if every grid is used up, or every sampler has stopped its study.
        """
        going = [s for s in self.studies if s.wanted]
        going = going or [
            s for s in self.studies if not s.is_stopped and (s.queue or not s.is_grid)
        ]
        if not going:
            return None
        study = min(going, key=lambda study: study.num_trials)
        is_wanted = bool(study.wanted)
        queue = study.wanted or study.queue
        point = queue.popleft() if queue else None
        trial = study.ask(trial_id, point)
        self._running[trial_id] = study, trial
        is_first = is_wanted or (point is not None and not study.is_grid)
        of_method = {} if study.method is None else {METHOD_KEY: study.method}
        params = {**of_method, **trial.params}
        return TrialRecord(trial_id, number, "trial", params, is_first_point=is_first)

    def goes_on(self, trial_id: str, report: Mapping[str, Any]) -> bool:
        """Take a report into account, and return whether the trial continues.

        References and trials outside of the space always do.
        """
        study, trial = self._running.get(trial_id, (None, None))
        return study is None or trial is None or study.goes_on(trial, report)

    def trial_ended(self, record: TrialRecord) -> None:
        """Pass the end on."""
        for asked in (self._running, self._references):
            if record.trial_id in asked:
                study, trial = asked.pop(record.trial_id)
                study.tell(trial, record)


def create_studies(
    goal: Goal,
    spaces: Spaces,
    sampler: SamplerConfig | BaseSampler,
    most_trials: int,
    run_id: str,
    pruner: Callable[[], BasePruner | None] = lambda: None,
    pruner_name: str = "none",
) -> Studies:
    """Make the studies of a search, without any trial.

    With several methods, all samplers have the same seed: methods with equal spaces start equally.

    Args:
        spaces: trials outside of them are unknown to the samplers.
        sampler: a configuration, or a sampler of Optuna, of which each method gets a copy.
        most_trials: of the search.
        run_id: of its journal.
        pruner: makes one for each method.
    """
    told = goal.sampler_objectives
    studies = []
    for method, space in spaces.items():
        config = None
        own: BaseSampler = RandomSampler()
        if isinstance(sampler, SamplerConfig):
            trials = math.ceil(most_trials / len(spaces))
            config = resolve_sampler(sampler, space, trials, len(told))
        else:
            own = sampler
        study = optuna.create_study(
            study_name=f"{run_id}-{method}",  # Hyperband draws trials' brackets from it
            sampler=own if method is None else copy.deepcopy(own),
            directions=["maximize" if o.mode == "max" else "minimize" for o in told],
        )
        created = MethodStudy(goal, space, study, method, config, pruner())
        # Samplers such as BruteForceSampler stop the study after their last point. The method of
        # Optuna 5.0 raises a RuntimeError outside of Study.optimize.
        study.stop = partial(setattr, created, "is_stopped", True)  # type: ignore[method-assign]
        studies.append(created)
    return Studies(studies, pruner_name, most_trials)


def point_of(record: TrialRecord) -> dict[str, ParamValue]:
    """The parameters of a trial without its method."""
    return {key: value for key, value in record.params.items() if key != METHOD_KEY}


def is_inside(params: Mapping[str, Any], space: SearchSpace) -> bool:
    """Whether the parameters are those of the space, each within its range."""
    if params.keys() != space.parameters.keys():
        return False
    try:
        for key, parameter in space.parameters.items():
            parameter.parse(params[key])
    except ValueError:
        return False
    return True


def violations(goal: Goal, record: TrialRecord, bests: Mapping[str, float]) -> dict[str, float]:
    """Constraint -> violation by a trial, finite."""
    missed = goal.violations(record, bests)
    return {text: min(violation, _WORST) for text, violation in missed.items()}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Within the block, Optuna logs warnings only: not every study and point, or that it is new."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
