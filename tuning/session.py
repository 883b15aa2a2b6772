"""A session: what a driver has while it runs trials, be it for a search, `confirm` or `plan`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from ray.tune import Callback as TuneCallback
from rich.console import Console

from trainers.data.store import Store, open_store, url_of
from tuning.algorithms.studies import Studies, quiet_optuna
from tuning.config.schema import BudgetConfig, SamplerConfig, SchedulerConfig, SearchFile
from tuning.driver import Driver
from tuning.execution.runner import RayRunner
from tuning.execution.trial_hardware import zero_shot_metrics
from tuning.log.callbacks import Callback
from tuning.log.errors import resumable, storage_failure
from tuning.log.history import History
from tuning.log.journal import Journal
from tuning.log.orders import orders_in
from tuning.log.paths import TRAIN_FOLDER, checkpoint_root_of
from tuning.log.records import SearchOutcome, TrialRecord
from tuning.process import restored_process
from tuning.run import Run
from tuning.views.formatting import show_phase
from tuning.views.progress import ProgressCallback

T = TypeVar("T")


class SearchArguments(TypedDict, total=False):
    """What a caller can pass to a search beside its configuration."""

    callbacks: Sequence[Callback]
    """Called after the callbacks of the search itself."""
    sampler: BaseSampler | SamplerConfig | str | None
    """Replaces `search.sampler`: its name, a configuration, or a sampler of Optuna. A resume goes
    on from the trials, if the object is passed again."""
    storage: BaseStorage | str | None
    """Of the study for dashboards, in place of `search.study_storage`: a URL, or a storage of
    Optuna."""
    address: str | None
    """Of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one."""
    console: Console | None
    """For the display of progress; by default the standard error."""
    tune_callbacks: Sequence[TuneCallback]
    """Callbacks and loggers of Ray Tune, such as `CSVLoggerCallback`. Loggers that write into
    Tune's folder of a trial find it below `tune/` in the run folder."""
    pruner: BasePruner | None
    """Replaces `search.scheduler`. Like a sampler, it is passed again to a resume."""


@dataclass(frozen=True)
class SearchOptions:
    """The arguments of a search, of which names and URLs are part of its configuration now."""

    callbacks: Sequence[Callback] = ()
    sampler: BaseSampler | None = None
    storage: BaseStorage | None = None
    address: str | None = None
    console: Console | None = None
    tune_callbacks: Sequence[TuneCallback] = ()
    pruner: BasePruner | None = None
    runner: type[RayRunner] = RayRunner
    """Runs trials."""

    @property
    def objects(self) -> dict[str, str]:
        """The classes of `sampler` and `pruner`, of those that are given."""
        given = {"sampler": self.sampler, "pruner": self.pruner}
        return {name: type(one).__name__ for name, one in given.items() if one is not None}


@dataclass(frozen=True)
class Session:
    """What a driver has while it runs trials: those of a search, of `confirm` or of `plan`."""

    folder: Path
    file: SearchFile
    options: SearchOptions
    journal: Journal
    """Locked by this session."""
    checkpoints: Store
    """Of all trials."""
    concurrent: int
    """Number of trials at a time."""
    console: Console
    progress: ProgressCallback
    runner: RayRunner
    orders: list[str]
    """`orders_in` the run folder at its begin."""

    def zero_shot(self, history: History, final_split: str | None = None) -> dict[str, float]:
        """The metrics of the model before any step, also on a final split; from the journal if they
        are there."""
        if history.zero_shot is not None:
            return history.zero_shot
        trial = self.file.trial
        # The cache of images may take hours for large data sets.
        what = f"evaluating {trial.model.name}, once the images are cached"
        show_phase(self.console, "Zero-shot", what)
        found = self.call(zero_shot_metrics, trial, final_split)
        self.journal.zero_shot(found)
        return found

    def call(self, function: Callable[..., T], *arguments: Any, alone: bool = False) -> T:
        """The result of a function where trials run, see `call_where_trials_run`."""
        return self.runner.call(self.file, function, *arguments, alone=alone)

    def run(
        self,
        history: History,
        callbacks: Sequence[Callback],
        *,
        fixed: Sequence[TrialRecord] = (),
        studies: Studies | None = None,
        final_split: str | None = None,
        begin: Callable[[], object] = lambda: None,
    ) -> tuple[History, SearchOutcome]:
        """Run trials to their end. Arguments that are not explained are those of `Driver`.

        Args:
            history: of earlier sessions: unfinished trials continue.
            final_split: evaluated once, after the last step of each trial.
            begin: called once nothing refuses the session any more.

        Returns:
            What the journal contains, and how the session ended.
        """
        # Trainings read the test splits through this argument alone. A run in which anything is
        # proposed or chosen by results must not have it.
        if final_split is not None and studies is not None:
            raise RuntimeError("trials are proposed, so the test splits must not be read")
        driver = Driver(
            Run(self.folder, self.file, history, is_live=True),
            self.journal,
            callbacks,
            studies=studies,
            fixed=fixed,
            orders_before=self.orders,
            check_ray=self.runner.watch.check,
        )
        self.progress.earlier_seconds = history.seconds
        show_phase(self.console, "Trials", f"starting workers for {self.concurrent} at once")
        outcome: SearchOutcome = "failed"
        try:
            driver.recorder.start()
            begin()
            self.runner.run(
                driver,
                self.concurrent,
                self.checkpoints.url,
                final_split,
                self.options.tune_callbacks,
            )
            outcome = driver.outcome
        except KeyboardInterrupt:
            outcome = "stopped"
        except Exception as error:
            outcome = "stopped" if storage_failure(error) else "failed"
            raise
        finally:
            ended = driver.finish(outcome)
        if outcome == "stopped":  # this ends the processes of trials if Ray is not ours to end
            gc.collect()
        if self.journal.failure:
            raise self.journal.failure
        return ended, outcome


@contextmanager
def open_session(
    folder: Path,
    file: SearchFile,
    options: SearchOptions,
    go_on: str,
    checkpoint_root: str | None = None,
    title: str = "",
    journal: Journal | None = None,
) -> Iterator[Session]:
    """Lock the journal of a run folder, connect to Ray, and see what fits there.

    Args:
        folder: exists; nothing is written there before the journal is locked.
        go_on: how to continue after a failure of the storage.
        checkpoint_root: folder or URL of all checkpoints; by default that of a search.
        title: of its progress; by default the name of the folder.
        journal: of the folder, if it is open.
    """
    console = options.console or Console(stderr=True)
    orders = orders_in(folder)
    with (
        restored_process(),
        resumable(go_on),
        closing(journal or Journal(folder)) as journal,
        options.runner.connected(options.address, console) as runner,
        quiet_optuna(),
        closing(
            ProgressCallback(console, journal.now, title, shows_best=checkpoint_root is None)
        ) as progress,
    ):
        if checkpoint_root is None:
            storage, name = file.search.checkpoints.storage, file.search.name
            checkpoint_root = checkpoint_root_of(folder, storage, name, journal.run_id)
        concurrent = runner.concurrent(file)
        checkpoints = open_store(url_of(checkpoint_root, TRAIN_FOLDER))
        yield Session(
            folder, file, options, journal, checkpoints, concurrent, console, progress, runner,
            orders,
        )  # fmt: skip


def fixed_only(file: SearchFile, trials: int) -> SearchFile:
    """The configuration of a run whose trials are all fixed: nothing stops or limits them."""
    budget = BudgetConfig(trials=trials, failures=None)
    changes = {"budget": budget, "references": (), "sampler": SamplerConfig(name="random")}
    changes |= {"scheduler": SchedulerConfig(name="none")}
    return file.model_copy(update={"search": file.search.model_copy(update=changes)})
