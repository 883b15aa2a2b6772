"""Ray Tune's loop, with our own searcher, scheduler, budget and recorder in it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from typing import Any

from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution import class_cache

from tuning.algorithms.budget import Budget
from tuning.algorithms.method_studies import Branch
from tuning.algorithms.searcher import OptunaSearcher
from tuning.algorithms.tune_scheduler import StepScheduler, create_rule
from tuning.config.schema import SearchFile
from tuning.runs.journal import History
from tuning.runs.recorder import Recorder


def create_tuner(
    train: Any,
    file: SearchFile,
    branches: Sequence[Branch],
    budget: Budget,
    recorder: Recorder,
    history: History,
    concurrent: int,
    *,
    reuse_actors: bool = False,
) -> tune.Tuner:
    """Tune's loop around a trainable, with all that proposes, stops and records trials.

    Args:
        train: what Tune runs for each proposal.
        file: the search.
        branches: told of `history` already.
        budget: says when it is over.
        recorder: hears of every event.
        history: what earlier sessions did.
        concurrent: trials at once.
        reuse_actors: run trials one after the other in the same processes. Tune hangs on them where
            a trial is stopped.
    """
    search, run_folder = file.search, recorder.search.run_folder
    _quiet_tune()
    _do_not_propagate_aws_keys()
    treat_ray_errors_as_actor_failures()
    shutil.rmtree(run_folder / "tune", ignore_errors=True)  # of earlier sessions: never read again
    searcher = OptunaSearcher(
        branches,
        recorder.search,
        may_propose=budget.allows,
        references=search.references,
        earlier=history.records,
    )
    steps = file.trial.steps
    rule = partial(create_rule, search.scheduler, steps)
    scheduler = StepScheduler(rule, file.objectives, steps, history.records, file.trial.method.name)
    return tune.Tuner(
        train,
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the searcher has no more
            max_concurrent_trials=concurrent,
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=reuse_actors,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run_folder),
            callbacks=[recorder],
            stop=_BudgetStopper(budget),
            verbose=0,
        ),
    )


class _BudgetStopper(tune.Stopper):
    """Stops running trials where a budget says that the search ends now."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._budget.over() is not None

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles it beside its own state, from which nothing is restored here


def treat_ray_errors_as_actor_failures() -> None:
    """Ray has more errors for a process that is gone than Tune knows, such as one that was killed
    for want of memory. By one that it does not know its loop would end, and with it the search."""
    for name in ("_actor_task_failed", "_actor_start_failed"):
        tell = getattr(RayActorManager, name)
        if not hasattr(tell, "__wrapped__"):
            setattr(RayActorManager, name, _as_known(tell))


def _as_known(tell: Callable[..., None]) -> Callable[..., None]:
    @wraps(tell)
    def told(*arguments: Any, **named: Any) -> None:
        call = signature(tell).bind(*arguments, **named)
        error = call.arguments["exception"]
        if isinstance(error, RayError) and not isinstance(error, RayActorError | RayTaskError):
            said = f"{type(error).__name__}: {error}"
            call.arguments["exception"] = RayActorError(error_msg=said)
        tell(*call.args, **call.kwargs)

    return told


def _quiet_tune() -> None:
    """Tune's display, result files and snapshots have no reader: ours take their place."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    # A report without the objective is a failure of that trial, and not of the search.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def _do_not_propagate_aws_keys() -> None:
    """Tune would put the driver's keys into the runtime environment of its trials, which Ray writes
    to its logs and shows on its dashboard. They are in the environment of each node."""
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in passed_on if not n.startswith("AWS_")}
