"""Ray Tune runs the trials of a driver. All classes of Tune are here, and none decides anything."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from pickle import loads
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from trainers.folders import temporary_folder
from trainers.redact import traceback_of
from tuning.driver import Driver, End, Wait
from tuning.execution.ray_workarounds import tune_workarounds
from tuning.log.errors import error_text
from tuning.log.messages import MESSAGE, Ended, Failed, Reported
from tuning.process import environment_variables, raise_interrupt

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

logger = logging.getLogger(__name__)


def run_trials(
    train: Any,
    driver: Driver,
    concurrent: int,
    max_failures: int,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Run trials until the driver has no more, or ends the search.

    Args:
        train: a class, because Ray Tune 2.60 hangs if it stops a trial of a function whose process
            it keeps. Its results have a message for the driver, see `Slot`.
        max_failures: of processes of trials before the first message.
        callbacks: of the user, for Tune. Its loggers write below `tune/` in the run folder.
    """
    events, first = _Events(driver), driver.run.file.objectives[0]
    with ExitStack() as stack:
        if callbacks:  # Tune copies what its loggers have written so often, and at the end
            copies = environment_variables({"TUNE_GLOBAL_CHECKPOINT_S": "60"}, override=False)
            stack.enter_context(copies)
            storage = driver.run.folder / "tune"
        else:  # files of Tune, which are never read again
            storage = stack.enter_context(temporary_folder("lipsum-tune-search-"))
        stack.enter_context(tune_workarounds())
        tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                num_samples=-1,  # until the searcher has no more
                max_concurrent_trials=concurrent,
                search_alg=_Searcher(driver, metric=first.metric, mode=first.mode),
                scheduler=_Scheduler(driver),
                reuse_actors=True,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"{datetime.now():%Y-%m-%d_%H-%M-%S}",  # a folder for each session
                storage_path=str(storage),
                callbacks=[events, *map(_Reports, callbacks)],
                stop=events,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures),
                verbose=0,
            ),
        ).fit()


def _trial_id(trial: TuneTrial) -> str:
    return str(trial.config["trial_id"])


class _OfDriver:
    """Tune pickles its searcher, scheduler and callbacks. Nothing is ever restored from that."""

    def __init__(self, driver: Driver, **options: Any) -> None:
        super().__init__(**options)
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_OfDriver, Searcher):
    """Asks the driver for the next trial."""

    def suggest(self, trial_id: str) -> Any:
        """The Tune configuration of a trial; None: ask again; FINISHED: there is no more."""
        match self._driver.next():
            case Wait():
                return None
            case End():
                return Searcher.FINISHED
            case trial:
                return trial

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Do nothing: the driver has got the message."""

    save = restore = on_trial_complete


class _Scheduler(_OfDriver, FIFOScheduler):
    """Tells the driver of lost processes of trials, and Tune how often to start one again."""

    def on_trial_result(
        self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Let the trial go on. Tune counts lost processes, and the driver all errors."""
        left = self._driver.attempts_left(_trial_id(trial))
        trial.max_failures = trial.num_failures + left
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        """Raise an error that ends the search, see `Driver.lost`."""
        self._driver.lost(_trial_id(trial), _error_of(trial))


class _Events(_OfDriver, tune.Callback, tune.Stopper):
    """Passes on what happens to trials.

    As a stopper, it is asked for each result, before callbacks get it, and once a turn of the loop.
    """

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial starts or continues."""
        self._driver.started(_trial_id(trial))

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial ends with this message."""
        return not self._driver.answered(result["config"]["trial_id"], result[MESSAGE])

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial has ended by itself, or was stopped."""
        self._driver.answered(_trial_id(trial), Ended())

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """The process of a trial was lost too often."""
        self._driver.answered(_trial_id(trial), Failed(error_text(_error_of(trial))))

    def stop_all(self) -> bool:
        """Whether all running trials are stopped, and the search ends."""
        raise_interrupt()
        return not self._driver.turn()


def _error_of(trial: TuneTrial) -> BaseException:
    """The error of a failed trial, which Tune keeps in a file."""
    file = Path(trial.pickled_error_file or "")
    if not file.is_file():  # the trial did not fail; Python adds the cause
        raise tune.TuneError(f"the end of {trial} could not be recorded")
    error: BaseException = loads(file.read_bytes())
    return error


class _Reports(tune.Callback):
    """A callback of the user, which sees the metrics of reports only, and no other message.

    Its exceptions are logged once an event: a tracker that is down ends no search.
    """

    def __init__(self, callback: tune.Callback) -> None:
        self._callback, self._failed = callback, set[str]()
        for name in dir(tune.Callback):
            if name.startswith("on_"):
                setattr(self, name, partial(self._call, name))

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Pass the experiment on. An exception ends the search before it begins."""
        self._callback.setup(*arguments, **info)

    def _call(self, name: str, **info: Any) -> None:
        if name == "on_trial_result":
            if not isinstance(info["result"][MESSAGE], Reported):
                return
            info["result"] = {k: v for k, v in info["result"].items() if k != MESSAGE}
        try:
            getattr(self._callback, name)(**info)
        except Exception as error:
            if name not in self._failed:
                kind, trace = type(self._callback).__name__, traceback_of(error)
                logger.error("%s failed at %s\n%s", kind, name, trace)
            self._failed.add(name)
