"""The loop of Ray Tune with this project's proposer, scheduler, budget and recorder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from ray import tune

from tuning.algorithms.budget import Budget
from tuning.algorithms.rung_check import SearchRule
from tuning.algorithms.searcher import TrialProposer
from tuning.algorithms.tune_scheduler import StepScheduler
from tuning.config.schema import SearchFile
from tuning.runs.journal import History
from tuning.runs.tune_callback import Recorder


def create_tuner(
    trainable: Any,
    file: SearchFile,
    proposer: TrialProposer,
    budget: Budget,
    recorder: Recorder,
    history: History,
    concurrent: int,
    storage: str,
    announce: Callable[[str], None],
) -> tune.Tuner:
    """A Tuner that proposes, stops and records trials as the configuration says.

    Create and fit it within `tuning.execution.ray_workarounds.tune_workarounds`.

    Args:
        trainable: a class, because Ray Tune 2.60 hangs if it stops a trial of a function whose
            process it keeps.
        concurrent: number of trials at a time.
        storage: a folder of this machine for files of Tune, which are never read again.
        announce: prints a line.
    """
    rule = SearchRule(
        file.search.scheduler,
        file.objectives,
        file.trial.steps,
        recorder.search.trials_per_method,
        recorder.search.configured_method,
    )
    scheduler = StepScheduler(rule, file.trial.steps, history.records, announce)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the proposer has no more
            max_concurrent_trials=concurrent,
            search_alg=proposer,
            scheduler=scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage,
            callbacks=[recorder, _StopNotice(announce)],
            stop=_BudgetStopper(budget),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # Of processes of trials: failed trainings are reported by them, see `Slot`.
            failure_config=tune.FailureConfig(file.search.resources.max_failures),
            verbose=0,
        ),
    )


class _StopNotice(tune.Callback):
    """Announces that Ctrl-C stops the search, since Tune takes about 10 s to end the trials.

    At the second Ctrl-C, the handler before Tune's raises KeyboardInterrupt.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._is_over = False

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Wrap the handler that Tune has just set, in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        of_tune = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: FrameType | None) -> None:
            if callable(of_tune):
                of_tune(number, frame)
            if not self._is_over:  # Tune's handler stays until the process restores its own
                self._announce("Ctrl-C      ending the trials; press it again not to wait for them")

        signal.signal(signal.SIGINT, stop)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Announce nothing while results are written."""
        self._is_over = True

    def __getstate__(self) -> dict[str, object]:
        return {}  # as below


class _BudgetStopper(tune.Stopper):
    """Stops running trials when a budget ends the search."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._budget.over() is not None

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles the stopper; nothing is ever restored from that
