"""The loop of Ray Tune with this project's proposer, scheduler, budget and recorder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from trainers.folders import temporary_folder
from tuning.algorithms.budget import Budget
from tuning.algorithms.searcher import TrialProposer
from tuning.algorithms.studies import Studies
from tuning.execution.ray_workarounds import tune_workarounds
from tuning.execution.scheduler import PrunerScheduler
from tuning.execution.signals import environment_variables
from tuning.execution.steering import Steering
from tuning.runs.messages import MESSAGE, Reported
from tuning.runs.recorder import Recorder
from tuning.runs.records import SearchOutcome

logger = logging.getLogger(__name__)


def run_trials(
    train: Any,
    proposer: TrialProposer,
    studies: Studies,
    budget: Budget,
    recorder: Recorder,
    steering: Steering,
    concurrent: int,
    max_failures: int,
    callbacks: Sequence[tune.Callback] = (),
) -> SearchOutcome:
    """Run trials until nothing more is proposed, and say how that ended.

    It is `stopped` after too many failures in a row.

    Args:
        train: a class, because Ray Tune 2.60 hangs if it stops a trial of a function whose process
            it keeps.
        max_failures: of processes of trials. Failed trainings are reported by them, see `Slot`.
        callbacks: of the user, for Tune. Its loggers write below `tune/` in the run folder.
    """
    with ExitStack() as stack:
        if callbacks:  # Tune copies what its loggers have written so often, and at the end
            copies = environment_variables({"TUNE_GLOBAL_CHECKPOINT_S": "60"}, override=False)
            stack.enter_context(copies)
            storage = recorder.search.run_folder / "tune"
        else:  # files of Tune, which are never read again
            storage = stack.enter_context(temporary_folder("lipsum-tune-search-"))
        stack.enter_context(tune_workarounds())
        tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                num_samples=-1,  # until the proposer has no more
                max_concurrent_trials=concurrent,
                search_alg=proposer,
                scheduler=PrunerScheduler(studies, recorder.search.total_steps, steering.stopped),
                reuse_actors=True,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"{datetime.now():%Y-%m-%d_%H-%M-%S}",  # a folder for each session
                storage_path=str(storage),
                callbacks=[recorder, steering, *map(_Reports, callbacks)],
                stop=steering,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures),
                verbose=0,
            ),
        ).fit()
    if budget.is_broken:
        return "stopped"
    complete = proposer.is_exhausted and recorder.is_complete
    return "finished" if complete or budget.over() is not None else "stopped"


def _trial_id(trial: Trial) -> str:
    return str(trial.config["trial_id"])


class _Reports(tune.Callback):
    """A callback of the user, which sees the metrics of reports only, and no other message.

    Its exceptions are logged once an event: a tracker that is down ends no search.
    """

    def __init__(self, callback: tune.Callback) -> None:
        self._callback, self._failed = callback, set[str]()

    def __getattribute__(self, name: str) -> Any:
        callback, failed = (object.__getattribute__(self, key) for key in ("_callback", "_failed"))
        if not name.startswith("on_"):
            return getattr(callback, name)

        def call(**info: Any) -> None:
            if name == "on_trial_result":
                if not isinstance(info["result"][MESSAGE], Reported):
                    return
                info["result"] = {k: v for k, v in info["result"].items() if k != MESSAGE}
            try:
                getattr(callback, name)(**info)
            except Exception:
                if name not in failed:
                    logger.exception("%s failed at %s", type(callback).__name__, name)
                failed.add(name)

        return call
