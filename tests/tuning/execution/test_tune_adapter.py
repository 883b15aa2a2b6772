"""Ray Tune, through the adapter, asks a driver as the tests' tuner does."""

import os
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from ray import tune

from tests.tuning import fakes
from tests.tuning.execution.inline_tuner import InlineTuner
from trainers.errors import StorageFailed
from tuning.driver import End, Wait
from tuning.execution.cluster_resources import SLOT
from tuning.execution.ray_session import ray_session
from tuning.execution.tune_adapter import run_trials
from tuning.log.errors import storage_failure
from tuning.log.messages import MESSAGE, Failed, Progressed, Reported

LAST = 3
TRIALS = {"a": 0, "b": 0, "c": 7, "d": 7, "e": 9, "f": 9}
"""Trials in the order of their proposal, and the number of messages before which they wait."""
STORY = [
    ("a", 1, 2),
    ("b", 1, 2),
    ("a", "progressed", 2),
    ("b", "lost", 2),
    ("a", 2, 3),  # is pruned
    ("b", 2, 3),
    ("b", "lost", 3),  # for the second time, so it has failed
    ("c", 1, 5),
    ("d", "failed", 5),
    ("c", LAST, 6),
    ("e", 1, 7),
    ("f", 1, 7),  # then the user ends the search
]
"""A message each: of which trial, what, and after how many starts of trials."""
RESUMED = [("f", 1, 2), ("e", LAST, 2), ("f", LAST, 2)]
FULL = [("g", 1, 1), ("g", "full", 1)]


class Scripted:
    """A driver that follows a story, and writes down what it is asked."""

    def __init__(self, folder, trials, story):
        self.run, self._folder, self.story = fakes.Search(folder), folder, story
        self._waiting = dict(trials)
        self.calls, self.messages, self.starts, self.losses = [], 0, 0, Counter()
        self._note()

    def _note(self, *call):
        """Tell the slots how far the story is."""
        self.calls += [call] if call else []
        progress = self._folder / "progress"
        progress.with_suffix(".new").write_text(f"{self.messages} {self.starts}")
        progress.with_suffix(".new").replace(progress)

    def next(self):
        for trial_id, messages in self._waiting.items():
            if messages > self.messages:
                return Wait()
            del self._waiting[trial_id]
            self._note("next", trial_id)
            return {"trial_id": trial_id, "story": self.story}
        self._note("end")
        return End()

    def started(self, trial_id):
        self.starts += 1
        self._note("started", trial_id)

    def answered(self, trial_id, message):
        ends = False
        match message:
            case Reported():
                ends = message.is_last or (trial_id, message.metrics["step"]) == ("a", 2)
                self.messages += 1
            case Progressed():
                self.messages += 1
            case Failed("in training"):
                ends, self.messages = True, self.messages + 1
        step = getattr(message, "metrics", {}).get("step")
        self._note("answered", trial_id, type(message).__name__, step)
        return not ends

    def attempts_left(self, trial_id):
        return 1 - self.losses[trial_id]

    def lost(self, trial_id, error):
        self.messages += 1
        self.losses[trial_id] += 1
        self._note("lost", trial_id)
        if failure := storage_failure(error):
            raise failure

    def turn(self):
        return self.messages < len(self.story)


class Played(tune.Trainable):
    """Says what the story has next for a trial, once it is its turn."""

    folder: Path
    is_process: bool

    def setup(self, config):
        self.reset_config(config)

    def reset_config(self, new_config):
        self.name, self.story = new_config["trial_id"], new_config["story"]
        return True

    def step(self):
        for _ in count():
            messages, starts = map(int, (self.folder / "progress").read_text().split())
            trial_id, what, needed = self.story[min(messages, len(self.story) - 1)]
            if trial_id == self.name and messages < len(self.story) and starts >= needed:
                break
            if not self.is_process:
                raise AssertionError("it is not its turn")
            time.sleep(0.01)
        match what:
            case "progressed":
                return {MESSAGE: Progressed(), "done": False}
            case "failed":
                return {MESSAGE: Failed("in training"), "done": True}
            case "full":
                raise StorageFailed("no space left")
            case "lost" if self.is_process:
                os._exit(1)
            case "lost":
                raise RuntimeError("its process is gone")
        report, is_last = {"step": what}, what == LAST
        return {**report, MESSAGE: Reported(report, is_last=is_last), "done": is_last}


def played(run, folder, is_process):
    """The calls of a search, and of another one that goes on after its end."""
    folder.mkdir()
    common = {"folder": folder, "is_process": is_process}
    slot = tune.with_resources(type("Played", (Played,), common), SLOT)
    calls = []
    for trials, story in ((TRIALS, STORY), (dict.fromkeys("fe", 0), RESUMED), ({"g": 0}, FULL)):
        driver = Scripted(folder, trials, story)
        try:
            run(slot, driver, 2, 1)
        except Exception as error:
            if (failure := storage_failure(error)) is None:
                raise
            calls.append(("raised", str(failure)))
        calls.append(driver.calls)
    return calls


class Turns(InlineTuner):
    """Whose turn it is has the next message."""

    def choose(self, running):
        trial_id, *_ = self._driver.story[self._driver.messages]
        return [*self._running].index(trial_id)


def run_in_turns(train, driver, concurrent, max_failures):
    Turns(train, driver, concurrent, max_failures).run()


def by_kind(calls):
    """Calls by what is asked; of two trials, either may start first."""
    asked = [call for call in calls if call[0] == "next"]
    started = sorted(call for call in calls if call[0] == "started")
    return asked, started, [call for call in calls if call[0] in ("answered", "lost")]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_tune_asks_a_driver_as_the_tuner_of_the_tests_does(tmp_path):
    inline = played(run_in_turns, tmp_path / "inline", is_process=False)
    assert [call[1] for call in inline[0] if call[0] == "started"] == [*"abb", *"cdef"]
    assert inline[2] == ("raised", "no space left")  # the whole story is played
    with ray_session():
        of_tune = played(run_trials, tmp_path / "runs", is_process=True)
    for calls, expected in zip(of_tune, inline, strict=True):
        if expected[0] == "raised":
            assert calls == expected
        else:
            assert by_kind(calls) == by_kind(expected)
