"""The searches that the simulator compares, each made anew from a seed.

Those with a prior begin at the points of `Problem.points`, which are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from search_spaces import SearchSpace
from tuning.algorithms.early_stopping import rung_ladder
from tuning.algorithms.rung_check import search_rule
from tuning.algorithms.studies import create_studies
from tuning.algorithms.tune_scheduler import StepScheduler
from tuning.config.objectives import Objective
from tuning.config.schema import SamplerConfig
from tuning.runs.records import ParamValue, SearchRecord, TrialRecord, outcome_of, trial_name
from tuning.selection.beliefs import beliefs


@dataclass(frozen=True)
class Problem:
    """What all contenders search, and the settings that they share."""

    space: SearchSpace
    objective: Objective
    total_steps: int
    grace_steps: int
    reduction_factor: float
    points: tuple[Mapping[str, ParamValue], ...] = ()
    """Those of a prior."""
    trials: int = 20
    """Budget, of which half at most runs to its end for the check of the rungs."""


class Ours(Searcher):
    """This project's studies behind the interface of Ray's searchers."""

    def __init__(self, problem: Problem, sampler: SamplerConfig, prior: bool) -> None:
        super().__init__(metric=problem.objective.metric, mode=problem.objective.mode)
        self._search = _search_record(problem, sampler.metric)
        points = [dict(point) for point in problem.points] if prior else []
        space = problem.space.model_copy(update={"initial_points": points})
        storage = InMemoryStorage()
        self._studies = create_studies(self._search, space, sampler, storage, "simulated")
        self._studies.enqueue_initial_points()
        self.study = self._studies.studies[0].study
        self._records: dict[str, TrialRecord] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next point of the sampler."""
        number = len(self._records)
        record = self._studies.propose(number, trial_name(number))
        assert record is not None
        self._records[trial_id] = record
        return {"trial_id": record.trial_id, "params": record.params, **record.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an intermediate value on."""
        self._records[trial_id] = self._records[trial_id].with_report(result)
        self._studies.trial_reported(self._records[trial_id])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass the end on; Tune brings the last report of a stopped trial with it."""
        if result is not None:
            self.on_trial_result(trial_id, result)
        outcome, _ = outcome_of(self._records[trial_id], self._search.total_steps)
        self._records[trial_id] = self._records[trial_id].with_end(outcome, 0.0)
        self._studies.trial_ended(self._records[trial_id])

    def expected_best(self) -> int | None:
        """Number of the trial that the rule `expected` chooses, if it chooses one."""
        found = beliefs(self._search, list(self._records.values()))
        return found[0].trial.number if found else None


@dataclass(frozen=True)
class Contender:
    """A way to search."""

    name: str
    create: Callable[[Problem, int], tuple[Searcher, TrialScheduler]]
    """From the problem and a seed."""
    evaluate_at: Callable[[Problem], Sequence[int]]
    """The steps at which its scheduler needs to know, and the last one."""
    prior: bool = False
    line: bool = True
    """Whether its trials report the best point of their lines, and not the end."""
    by_expectation: bool = False
    """Whether it recommends the trial of rule `expected`, and not the best measured one."""


def ours(
    name: str,
    sampler: str,
    scheduler: str = "none",
    *,
    metric: str = "objective",
    reach: float = SamplerConfig().reach,
    prior: bool = False,
    checked: bool = True,
    by_expectation: bool = False,
) -> Contender:
    """A search by this project's own searcher and scheduler.

    Args:
        metric, reach: of the sampler, see `SamplerConfig`.
    """

    def create(problem: Problem, seed: int) -> tuple[Searcher, TrialScheduler]:
        settings = {"name": sampler, "seed": seed, "metric": metric, "reach": reach}
        searcher = Ours(problem, SamplerConfig.model_validate(settings), prior)
        config = {"search": {"scheduler": _scheduler_settings(scheduler, problem, checked)}}
        record = replace(_search_record(problem, metric), config=config)
        return searcher, StepScheduler(search_rule(record), problem.total_steps)

    def evaluate_at(problem: Problem) -> Sequence[int]:
        return [problem.total_steps] if scheduler == "none" else _rungs(problem)

    return Contender(name, create, evaluate_at, prior, by_expectation=by_expectation)


def stock(name: str, *, pruned: bool = True, prior: bool = False) -> Contender:
    """Ray's own OptunaSearch, which is TPE with Optuna's defaults, with Ray's ASHA or without."""

    def create(problem: Problem, seed: int) -> tuple[Searcher, TrialScheduler]:
        metric, mode = problem.objective.metric, problem.objective.mode
        points = [dict(point) for point in problem.points] if prior else None
        searcher = OptunaSearch(
            problem.space.distributions(),
            points_to_evaluate=points,
            metric=metric,
            mode=mode,
            seed=seed,
        )
        if not pruned:
            return searcher, FIFOScheduler()
        scheduler = ASHAScheduler(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=problem.total_steps,
            grace_period=problem.grace_steps,
            reduction_factor=problem.reduction_factor,
        )
        return searcher, scheduler

    evaluate_at = _rungs if pruned else lambda problem: [problem.total_steps]
    return Contender(name, create, evaluate_at, prior)


def _rungs(problem: Problem) -> list[int]:
    ladder = rung_ladder(problem.grace_steps, problem.reduction_factor, problem.total_steps)
    return [*ladder, problem.total_steps]


def _scheduler_settings(name: str, problem: Problem, checked: bool) -> dict[str, str | float]:
    """`search.scheduler` of a configuration."""
    settings: dict[str, str | float] = {"name": name}
    if name != "none":
        settings["grace_steps"] = problem.grace_steps
        settings["reduction_factor"] = problem.reduction_factor
        if not checked:
            settings["check_trials"] = 0
    return settings


def _search_record(problem: Problem, sampler_metric: str) -> SearchRecord:
    """As much of a search as the searcher reads: objectives and length."""
    return SearchRecord(
        name="simulated",
        total_steps=problem.total_steps,
        budget_trials=problem.trials,
        objectives=(problem.objective,),
        id_domain="",
        ood_domains=(),
        zero_shot={},
        config={},
        run_folder=Path(),
        sampler_metric=sampler_metric,
    )


RANDOM = "random"
STOCK = "Ray's OptunaSearch + ASHA, prior"
OURS = "ours"
"""The defaults: a prior, and a Gaussian process on NLL and objective, near the best trial."""
WITH_ASHA = "ours with ASHA"
"""Once its rungs are checked."""
NO_LINE = ", no line"
_WITH_LINE = (
    ours(RANDOM, "random"),
    ours("random, prior", "random", prior=True),
    stock(STOCK, prior=True),
    ours("TPE, prior", "tpe", prior=True),
    ours(OURS, "gp", metric="auto", prior=True),
    ours(WITH_ASHA, "gp", "asha", metric="auto", prior=True),
    ours("ours, expected trial", "gp", metric="auto", prior=True, by_expectation=True),
    ours("ours, anywhere", "gp", metric="auto", reach=1, prior=True),
    ours("ours on the NLL", "gp", metric="val/mean_nll", prior=True),
    ours("ours on the objective", "gp", prior=True),
)
CONTENDERS = {
    contender.name: contender
    for of in _WITH_LINE
    for contender in (of, replace(of, name=of.name + NO_LINE, line=False))
}
"""By name, in the order of the table."""
