"""The searches that the simulator compares, each made anew from a seed.

Those with a prior begin at the points of `Problem.points`, which are the same for all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from search_spaces import SearchSpace
from tuning.algorithms.pruning import create_pruner
from tuning.algorithms.studies import create_studies
from tuning.config.objectives import Objective
from tuning.config.schema import SamplerConfig, SchedulerConfig
from tuning.runs.records import ParamValue, SearchRecord, TrialRecord, trial_name

REACH = SamplerConfig().reach
LR = "optim.lr"


@dataclass(frozen=True)
class Problem:
    """What all contenders search, and the settings that they share."""

    space: SearchSpace
    objective: Objective
    total_steps: int
    grace_steps: int
    reduction_factor: int
    points: tuple[Mapping[str, ParamValue], ...] = ()
    """Those of a prior."""
    trials: int = 20
    """Budget."""


class Ours(Searcher):
    """This project's studies behind the interface of Ray's searchers."""

    def __init__(self, problem, sampler, scheduler, prior):
        super().__init__(metric=problem.objective.metric, mode=problem.objective.mode)
        self.search = _search_record(problem, sampler.metric)
        points = [dict(point) for point in problem.points] if prior else []
        space = problem.space.model_copy(update={"initial_points": points})
        self.studies = create_studies(
            self.search, space, sampler, lambda: create_pruner(scheduler, problem.total_steps, 1)
        )
        self.studies.enqueue_first_points()
        self.study = self.studies.studies[0].study
        self.records: dict[str, TrialRecord] = {}

    def suggest(self, trial_id):
        """The next point of the sampler."""
        number = len(self.records)
        record = self.studies.propose(number, trial_name(number))
        if record is None:
            return Searcher.FINISHED
        self.records[trial_id] = record
        return {"trial_id": record.trial_id, "params": record.params, **record.params}

    def on_trial_result(self, trial_id, result):
        self.records[trial_id] = self.records[trial_id].with_report(result)
        self.studies.goes_on(self.records[trial_id].trial_id, result)

    def on_trial_complete(self, trial_id, result=None, error=False):
        """Pass the end on; Tune brings the last report of a stopped trial with it."""
        if result is not None:
            self.on_trial_result(trial_id, result)
        ended = self.records[trial_id]
        is_done = ended.step >= self.search.total_steps
        ended = ended.with_end("failed" if error else "finished" if is_done else "pruned", 0.0)
        self.records[trial_id] = ended
        self.studies.trial_ended(ended)


class AlongLine(Ours):
    """Points around a prior's centre, moved along the learning rate as the best line says.

    A point at a of the line is about as good as the end of a training with a times the learning
    rate. A line that is best at its end asks for twice the rate. Around that, a point keeps half of
    its own distance to the centre, on the scale of the range.
    """

    def suggest(self, trial_id):
        study, objective = self.studies.studies[0], self.search.objectives[0]
        done = [record for record in self.records.values() if record.outcome == "finished"]
        if study.queue and done:
            best = max(done, key=lambda record: objective.signed(record.last(objective.metric)))
            a, point, parameter = best.last("line/a"), study.queue[0], study.space.parameters[LR]
            target, own, centre = (
                parameter.unit(lr)
                for lr in (
                    best.params[LR] * (2 if a == 1 else a),
                    point[LR],
                    study.space.initial_points[0][LR],
                )
            )
            study.queue[0] = {**point, LR: parameter.at(target + (own - centre) / 2)}
        return super().suggest(trial_id)


class Pruned(FIFOScheduler):
    """This project's early stopping behind the interface of Ray's schedulers."""

    def __init__(self, searcher):
        super().__init__()
        self._studies = searcher.studies

    def on_trial_result(self, tune_controller, trial, result):
        goes_on = self._studies.goes_on(trial.config["trial_id"], result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


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


def ours(
    name,
    sampler,
    scheduler="none",
    *,
    metric="objective",
    reach=REACH,
    prior=False,
    kind=Ours,
):
    """A search by this project's own searcher and scheduler.

    Args:
        metric, reach: of the sampler, see `SamplerConfig`.
        kind: of searcher.
    """

    def create(problem, seed):
        settings = {"name": sampler, "seed": seed, "metric": metric, "reach": reach}
        stopping = SchedulerConfig(
            name=scheduler,
            grace_steps=problem.grace_steps,
            reduction_factor=problem.reduction_factor,
        )
        searcher = kind(problem, SamplerConfig.model_validate(settings), stopping, prior)
        return searcher, Pruned(searcher)

    def evaluate_at(problem):
        return [problem.total_steps] if scheduler == "none" else _rungs(problem)

    return Contender(name, create, evaluate_at, prior)


def stock(name, *, pruned=True, prior=False):
    """Ray's own OptunaSearch, which is TPE with Optuna's defaults, with Ray's ASHA or without."""

    def create(problem, seed):
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


def rung_ladder(grace_steps, reduction_factor, total_steps):
    """The steps at which trials are compared: grace, grace * factor, ... below the last."""
    rungs = [grace_steps]
    while rungs[-1] < total_steps:
        rungs.append(rungs[-1] * reduction_factor)
    return rungs[:-1]


def _rungs(problem):
    ladder = rung_ladder(problem.grace_steps, problem.reduction_factor, problem.total_steps)
    return [*ladder, problem.total_steps]


def _search_record(problem, sampler_metric):
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
"""The defaults: a prior, and a Gaussian process on the NLL, near the best trial."""
WITH_ASHA = "ours with ASHA"
"""Once six trials have finished."""
ALONG_LINE = "ours, along the line"
NO_LINE = ", no line"
_WITH_LINE = (
    ours(RANDOM, "random"),
    ours("random, prior", "random", prior=True),
    stock(STOCK, prior=True),
    ours("TPE, prior", "tpe", prior=True),
    ours(OURS, "gp", metric="auto", prior=True),
    ours(WITH_ASHA, "gp", "asha", metric="auto", prior=True),
    ours("ours, anywhere", "gp", metric="auto", reach=1, prior=True),
    ours("ours on the objective", "gp", prior=True),
)
_ALONG_LINE = ours(ALONG_LINE, "gp", metric="auto", prior=True, kind=AlongLine)
CONTENDERS = {
    contender.name: contender
    for of in _WITH_LINE
    for contender in (of, replace(of, name=of.name + NO_LINE, line=False))
} | {ALONG_LINE: _ALONG_LINE}
"""By name, in the order of the table."""
