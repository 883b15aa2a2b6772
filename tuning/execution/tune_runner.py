"""Ray Tune's loop, with our own searcher, scheduler, budget and recorder in it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from typing import Any

from ray import tune

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

    To be created and fitted within `tuning.execution.ray_workarounds.tune_workarounds`.

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
