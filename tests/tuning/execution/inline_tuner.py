"""Searches without Ray: an inline tuner makes the calls of `tune.Tuner` in its order.

Its warrant is `test_inline_tuner.py`, which compares it with Ray Tune itself.
"""

import json
import pickle
import shutil
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from optuna.storages.journal import JournalFileBackend
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from tests.tuning.execution.instant import zero_shot
from tuning.runs.callbacks import Callback
from tuning.runs.journal import append_synced
from tuning.views.callback import ResultsCallback

CONTROLLER = None
"""Schedulers that stop trials, and searchers, do not ask Tune's controller for anything."""
REPORTED = {}
"""The step that each trial has reported last, whoever learned of it."""


class _Trial(Trial):
    pickled_error_file = None


class InlineTuner:
    """`tune.Tuner` in this process. Slots are kept from trial to trial, as with `reuse_actors`."""

    choose = staticmethod(lambda running: 0)
    """Which of so many running trials reports next, where it is not a matter of time."""

    def __init__(self, train, *, tune_config, run_config):
        self._train, self._run = train, run_config
        self._searcher, self._scheduler = tune_config.search_alg, tune_config.scheduler
        self._concurrent = tune_config.max_concurrent_trials
        self._running, self._trials, self._free = [], [], []
        self._iteration, self._failures = 0, Counter()

    def fit(self):
        for _ in self.run():
            pass

    def run(self):
        for callback in self._run.callbacks:
            callback.setup()
        is_exhausted = False
        while True:
            self._tell("on_step_begin")
            while len(self._running) < self._concurrent and not is_exhausted:
                trial_id = f"{len(self._trials):05d}"
                config = self._searcher.suggest(trial_id)
                is_exhausted = config == Searcher.FINISHED
                if is_exhausted or config is None:
                    break
                self._start(trial_id, config)
            if self._running:
                trial = self.next_to_report()
                self._report(trial)
                if trial not in self._running:
                    yield trial
            if self._run.stop is not None and self._run.stop.stop_all():
                self._running, is_exhausted = [], True  # Tune tells nobody of the ends
            self._iteration += 1
            self._tell("on_step_end")
            if is_exhausted and not self._running:
                break
        for callback in self._run.callbacks:
            callback.on_experiment_end(trials=self._trials)

    def next_to_report(self):
        return self._running[self.choose(len(self._running))]

    def _start(self, trial_id, config):
        trial = _Trial("inline", config=config, trial_id=trial_id, stub=True)
        self._trials.append(trial)
        self._scheduler.on_trial_add(CONTROLLER, trial)
        self._running.append(trial)
        self._run_in_slot(trial)

    def _run_in_slot(self, trial):
        trial.set_status(Trial.RUNNING)
        trial.reports = 0
        if self._free:
            trial.slot = self._free.pop()
            trial.slot.reset_config(trial.config)
        else:
            trial.slot = self._train.__new__(self._train)
            trial.slot.setup(trial.config)
        self._tell("on_trial_start", trial)

    def _report(self, trial):
        try:
            result = trial.slot.step()
        except Exception as error:
            self._fail(trial, error)
            return
        trial.reports += 1
        REPORTED[trial.config.get("trial_id")] = result.get("step")
        result |= {"training_iteration": trial.reports, "trial_id": trial.trial_id}
        result.setdefault("done", False)
        flat = flatten_dict(result)
        if trial.should_stop(flat):
            decision = TrialScheduler.STOP
        else:
            decision = self._scheduler.on_trial_result(CONTROLLER, trial, flat)
        if decision == TrialScheduler.STOP:
            result["done"] = True
        else:
            self._searcher.on_trial_result(trial.trial_id, flat)
        self._tell("on_trial_result", trial, result=dict(result))
        trial.update_last_result(result)
        if decision == TrialScheduler.STOP:
            self._complete(trial)

    def _complete(self, trial):
        last = flatten_dict(trial.last_result)
        self._scheduler.on_trial_complete(CONTROLLER, trial, last)
        self._searcher.on_trial_complete(trial.trial_id, result=last)
        self._tell("on_trial_complete", trial)
        self._end(trial, Trial.TERMINATED)

    def _fail(self, trial, error):
        trial.slot = None  # Tune ends a process that has raised
        trial.pickled_error_file = str(Path(self._run.storage_path) / f"{trial.trial_id}.pkl")
        Path(trial.pickled_error_file).write_bytes(pickle.dumps(RayTaskError("step", "", error)))
        self._failures[trial] += 1
        if self._failures[trial] <= self._run.failure_config.max_failures:
            self._scheduler.on_trial_error(CONTROLLER, trial)
            self._scheduler.on_trial_add(CONTROLLER, trial)
            self._tell("on_trial_recover", trial)
            self._run_in_slot(trial)
            return
        self._scheduler.on_trial_error(CONTROLLER, trial)
        self._searcher.on_trial_complete(trial.trial_id, error=True)
        self._tell("on_trial_error", trial)
        self._end(trial, Trial.ERROR)

    def _end(self, trial, status):
        trial.set_status(status)
        self._running.remove(trial)
        if trial.slot is not None:
            self._free.append(trial.slot)

    def _tell(self, event, trial=None, **more):
        named = {"iteration": self._iteration, "trials": self._trials, **more}
        for callback in self._run.callbacks:
            getattr(callback, event)(**named, **({} if trial is None else {"trial": trial}))


@contextmanager
def without_ray(mlflow=True):
    """Within the block, searches have instant trials, no Ray and no figures."""
    watch = SimpleNamespace(check=lambda: None, lost=None, record_end=None)
    session = {
        "ray_session": lambda *_, **__: nullcontext(True),
        "watched_ray": lambda *_: nullcontext(watch),
        "concurrent_trials": lambda resources, **_: resources.max_concurrent or 1,
        "zero_shot_metrics": zero_shot,
        "restored_process": nullcontext,
    }
    with ExitStack() as patches:
        if not mlflow:
            for module in ("tuning.search", "tuning.confirmation.confirm"):
                stand_in = patch(f"{module}.MlflowCallback", lambda *_, **__: Callback())
                patches.enter_context(stand_in)
        for name, stand_in in session.items():
            patches.enter_context(patch(f"tuning.session.{name}", stand_in))
        # A thread would outlive a driver that is killed in this process, and write its files.
        patches.enter_context(patch.object(ResultsCallback, "_follow"))
        patches.enter_context(patch("tuning.views.page.write_page"))
        patches.enter_context(patch("tuning.views.static.write_main_figure"))
        patches.enter_context(patch("ray.tune.Tuner", InlineTuner))
        yield


class Killed(BaseException):
    """A driver was killed."""


@contextmanager
def killed_at_write(number, folder):
    """Within the block, the process is killed in the middle of a write, counted from 0.

    A block of this process cannot die: what it does on the way out is undone afterwards.
    """
    left, is_dead, snapshot = number, False, folder.with_name("snapshot")

    def write(content, half, whole):
        nonlocal left, is_dead
        if left == 0 and not is_dead:
            half(content[: len(content) // 2])
            shutil.copytree(folder, snapshot)
            is_dead = True
        if is_dead:
            raise Killed
        left -= 1
        whole(content)

    def to_journal(file, content):
        write(content, file.write, lambda content: append_synced(file, content))

    def to_optuna(backend, logs):
        def append(content):
            with Path(backend._file_path).open("ab") as file:
                file.write(content)

        write("".join(f"{json.dumps(log)}\n" for log in logs).encode(), append, append)

    with (
        patch("os.fsync"),  # takes most of the time
        patch("tuning.runs.journal.append_synced", to_journal),
        patch.object(JournalFileBackend, "append_logs", to_optuna),
    ):
        try:
            yield
        except Killed:
            shutil.rmtree(folder)
            snapshot.rename(folder)
