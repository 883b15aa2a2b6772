"""What a session asks of Ray: room for trials, calls where they run, and the trials themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from ray import tune
from rich.console import Console

from trainers.methods.registry import texts_of
from tuning.config.schema import SearchFile
from tuning.driver import Driver
from tuning.execution.ray_session import concurrent_trials, ray_session
from tuning.execution.ray_watch import RayWatch, watched_ray
from tuning.execution.shared_memory import check_shared_memory
from tuning.execution.slot import trainable
from tuning.execution.trial_hardware import call_where_trials_run
from tuning.execution.tune_adapter import run_trials

T = TypeVar("T")


@dataclass(frozen=True)
class RayRunner:
    """Ray, as long as a session is connected to it. Tests derive from it."""

    watch: RayWatch
    is_own: bool
    """Whether it was started for this session."""
    trainable: ClassVar[Callable[..., Any]] = staticmethod(trainable)
    """Makes what Ray Tune runs."""

    @classmethod
    @contextmanager
    def connected(cls, address: str | None, console: Console) -> Iterator[Self]:
        """Within the block, Ray is there, see `ray_session`."""
        with ray_session(address, console=console) as is_own, watched_ray() as watch:
            yield cls(watch, is_own)

    def concurrent(self, file: SearchFile) -> int:
        """Number of trials at a time, for which there is shared memory, too."""
        number = concurrent_trials(file.search.resources, is_own_ray=self.is_own)
        check_shared_memory(file, number, is_own_ray=self.is_own)
        return number

    def call(
        self, file: SearchFile, function: Callable[..., T], *arguments: Any, alone: bool = False
    ) -> T:
        """The result of a function where trials run, see `call_where_trials_run`."""
        return call_where_trials_run(
            function,
            *arguments,
            resources=file.search.resources,
            call=self.watch.call,
            here=self.is_own,
            alone=alone,
        )

    def run(
        self,
        driver: Driver,
        concurrent: int,
        checkpoints: str,
        final_split: str | None,
        callbacks: Sequence[tune.Callback],
    ) -> None:
        """Run the trials of a driver to their end, see `run_trials` and `trainable`."""
        file = driver.run.file
        resources = file.search.resources
        plugins = texts_of(file.trial.plugins)
        train = self.trainable(checkpoints, resources, final_split, plugins)
        self.watch.call(run_trials, train, driver, concurrent, resources.max_failures, callbacks)
