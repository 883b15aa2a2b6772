"""Searches without Ray: a tuner of this process asks the driver as Ray Tune's adapter does.

`test_tune_adapter.py` compares the two.
"""

import json
import shutil
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from optuna.storages.journal import JournalFileBackend

from tests.tuning.execution.instant import zero_shot
from tuning.driver import End
from tuning.execution.runner import RayRunner
from tuning.execution.shared_memory import check_shared_memory
from tuning.log.errors import error_text
from tuning.log.journal import append_synced
from tuning.log.messages import MESSAGE, Ended, Failed, Reported
from tuning.views.follower import Follower, View

CONFIRM = "tuning.confirmation.confirm"
REPORTED = {}
"""The step that each trial has reported last, whoever learned of it."""


class InlineTuner:
    """Runs the trials of a driver one message after the other. Slots are kept, as Tune keeps them.

    Args:
        train: the class of the slots.
    """

    choose = staticmethod(lambda running: 0)
    """Which of so many running trials has the next message, where it is not a matter of time."""

    def __init__(self, train, driver, concurrent, max_failures):
        self._train, self._driver = train, driver
        # A driver of a script has none.
        self._callbacks = driver.recorder._callbacks if hasattr(driver, "recorder") else ()
        self._concurrent = concurrent
        self._running, self._configs = {}, {}
        self._free = []

    def run(self):
        is_exhausted = False
        while self._running or not is_exhausted:
            while len(self._running) < self._concurrent and not is_exhausted:
                found = self._driver.next()
                is_exhausted = isinstance(found, End)
                if not isinstance(found, dict):
                    break
                self._start(found)
            if self._running:
                self._ask([*self._running][self.choose(len(self._running))])
            for callback in self._callbacks:
                if isinstance(callback, Follower):
                    callback.turn()
            if not self._driver.turn():
                break

    def _start(self, config):
        trial_id = config["trial_id"]
        self._configs[trial_id] = config
        if self._free:
            slot = self._free.pop()
            slot.reset_config(config)
        else:
            slot = self._train.__new__(self._train)
            slot.setup(config)
        self._running[trial_id] = slot
        self._driver.started(trial_id)

    def _ask(self, trial_id):
        try:
            message = self._running[trial_id].step()[MESSAGE]
        except Exception as error:
            del self._running[trial_id]  # the process ends with an error that its step raises
            left = self._driver.attempts_left(trial_id)
            self._driver.lost(trial_id, error)
            if left:
                self._start(self._configs[trial_id])
            else:
                self._driver.answered(trial_id, Failed(error_text(error)))
            return
        REPORTED[trial_id] = message.metrics["step"] if isinstance(message, Reported) else None
        if not self._driver.answered(trial_id, message):
            self._driver.answered(trial_id, Ended())
            self._free.append(self._running.pop(trial_id))


class InlineRunner:
    """What `RayRunner` has in its place."""

    choose = None

    @classmethod
    @contextmanager
    def connected(cls, address, console):
        watch = SimpleNamespace(check=lambda: None, call=lambda function, *of: function(*of))
        yield cls(watch, is_own=True)

    def concurrent(self, file):
        number = file.search.resources.max_concurrent or 1
        check_shared_memory(file, number, is_own_ray=True)
        return number

    def run(self, driver, concurrent, checkpoints, final_split, callbacks):
        resources = driver.run.file.search.resources
        train = self.trainable(checkpoints, resources, final_split, {})
        tuner = InlineTuner(train, driver, concurrent, resources.max_failures)
        if InlineRunner.choose is not None:
            tuner.choose = InlineRunner.choose
        tuner.run()


@contextmanager
def without_ray(mlflow=True, models=False, choose=None):
    """Within the block, searches have instant trials, no Ray and no figures.

    Args:
        models: `confirm` builds a model, of weights that its trainings have left.
        choose: see `InlineTuner.choose`.
    """
    with ExitStack() as patches:
        if not mlflow:
            patches.enter_context(patch("tuning.search.MlflowView", lambda *_, **__: View()))
            patches.enter_context(patch(f"{CONFIRM}.complete_files", return_value=[]))
        if not models:
            patches.enter_context(patch(f"{CONFIRM}.needs_model", return_value=False))
        inline = {name: vars(InlineRunner)[name] for name in ("connected", "concurrent", "run")}
        patches.enter_context(patch.multiple(RayRunner, **inline))
        patches.enter_context(patch.object(InlineRunner, "choose", choose))
        patches.enter_context(patch("tuning.session.zero_shot_metrics", zero_shot))
        patches.enter_context(patch("tuning.session.restored_process", nullcontext))
        # A thread would outlive a driver that is killed in this process, and write its files.
        patches.enter_context(patch("tuning.views.follower.Thread", JoinedThread))
        patches.enter_context(patch("tuning.views.page.write_page"))
        yield


class JoinedThread(SimpleNamespace):
    """Runs when it is joined."""

    def start(self):
        pass

    def join(self, timeout):
        self.target()

    def is_alive(self):
        return False


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
        patch("tuning.log.journal.append_synced", to_journal),
        patch.object(JournalFileBackend, "append_logs", to_optuna),
    ):
        try:
            yield
        except Killed:
            shutil.rmtree(folder)
            snapshot.rename(folder)
