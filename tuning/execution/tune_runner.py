"""The loop of Ray Tune with this project's proposer, scheduler, budget and recorder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from ray import tune

from trainers.folders import temporary_folder
from tuning.algorithms.budget import Budget
from tuning.algorithms.rung_check import search_rule
from tuning.algorithms.searcher import TrialProposer
from tuning.algorithms.tune_scheduler import StepScheduler
from tuning.execution.ray_workarounds import tune_workarounds
from tuning.runs.recorder import Recorder
from tuning.runs.records import SearchOutcome, TrialRecord


def run_trials(
    train: Any,
    proposer: TrialProposer,
    budget: Budget,
    recorder: Recorder,
    earlier: Sequence[TrialRecord],
    concurrent: int,
    max_failures: int,
    announce: Callable[[str], None],
    interrupted: Callable[[], None],
) -> SearchOutcome:
    """Run trials until nothing more is proposed, and say how that ended.

    It is `stopped` after Ctrl-C, which Tune does not raise, or after too many failures in a row.

    Args:
        train: a class, because Ray Tune 2.60 hangs if it stops a trial of a function whose process
            it keeps.
        max_failures: of processes of trials. Failed trainings are reported by them, see `Slot`.
        interrupted: called at the first Ctrl-C, after which Tune ends the trials.
    """
    rule = search_rule(recorder.search)
    # The folder is for files of Tune, which are never read again.
    with tune_workarounds(), temporary_folder("lipsum-tune-search-") as storage:
        tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                num_samples=-1,  # until the proposer has no more
                max_concurrent_trials=concurrent,
                search_alg=proposer,
                scheduler=StepScheduler(rule, recorder.search.total_steps, earlier, announce),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                callbacks=[recorder, _StopNotice(interrupted)],
                stop=_BudgetStopper(budget),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures),
                verbose=0,
            ),
        ).fit()
    if budget.is_broken:
        return "stopped"
    complete = proposer.is_exhausted and recorder.is_complete
    return "finished" if complete or budget.over() is not None else "stopped"


class _StopNotice(tune.Callback):
    """Calls `interrupted` at Ctrl-C, since Tune takes about 10 s to end the trials.

    At the second Ctrl-C, the handler before Tune's raises KeyboardInterrupt.
    """

    def __init__(self, interrupted: Callable[[], None]) -> None:
        self._interrupted = interrupted
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
                self._interrupted()

        signal.signal(signal.SIGINT, stop)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Call nothing while results are written."""
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
