"""The inline tuner makes the calls of Ray Tune itself, in its order."""

import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tests.tuning.execution.inline_tuner import InlineTuner
from tuning.execution.ray_session import ray_session

TRIALS = (
    {"value": 3.0, "raises": -1},
    {"value": 1.0, "raises": -1},  # is stopped
    {"value": 2.5, "raises": 1},  # is repeated, and raises again
    {"value": 4.0, "raises": -1},
)
LAST = 3


class Reports(tune.Trainable):
    """Trials of three reports, in a process that is kept."""

    def setup(self, config):
        self.reset_config(config)

    def reset_config(self, new_config):
        self.config, self.reports = new_config, 0
        return True

    def step(self):
        if self.reports == self.config["raises"]:
            raise ArithmeticError("diverged")
        self.reports += 1
        value = self.config["value"] * self.reports
        return {"step": self.reports, "value": value, "done": self.reports == LAST}


class Script(Searcher):
    """Proposes the trials, and writes down every call."""

    def __init__(self, calls):
        super().__init__(metric="value", mode="max")
        self.calls, self.waiting, self.names = calls, list(TRIALS), {}

    def suggest(self, trial_id):
        if not self.waiting:
            return Searcher.FINISHED
        self.names[trial_id] = len(self.names)
        self.calls.append(("suggest", self.names[trial_id]))
        return self.waiting.pop(0)

    def on_trial_result(self, trial_id, result):
        self.calls.append(("searcher result", self.names[trial_id], *seen(result)))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.calls.append(("searcher complete", self.names[trial_id], *seen(result), error))


class StopsBelow(FIFOScheduler):
    """Stops what has less than 4 at its second report, and writes down every call."""

    def __init__(self, script):
        super().__init__()
        self.script = script

    def on_trial_add(self, tune_controller, trial):
        self._note("add", trial)

    def on_trial_result(self, tune_controller, trial, result):
        self._note("result", trial, result)
        is_low = result["step"] == 2 and result["value"] < 4
        return TrialScheduler.STOP if is_low else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller, trial, result):
        self._note("complete", trial, result)

    def on_trial_error(self, tune_controller, trial):
        self._note("error", trial)

    def _note(self, what, trial, result=None):
        number = self.script.names[trial.trial_id]
        self.script.calls.append((f"scheduler {what}", number, *seen(result)))


class Notes(tune.Callback):
    """Writes down every call but those at each turn of Tune's loop, which also turns idly."""

    def __init__(self, script):
        self.script = script

    def __getattribute__(self, name):
        if not name.startswith(("on_trial", "on_experiment", "setup")):
            return super().__getattribute__(name)
        script = super().__getattribute__("script")

        def note(trial=None, result=None, **_):
            number = None if trial is None else script.names[trial.trial_id]
            last = trial.last_result if name == "on_trial_complete" else None
            script.calls.append((name, number, *seen(result or last)))

        return note

    def __getstate__(self):
        return {}


def seen(result):
    return tuple((result or {}).get(key) for key in ("step", "value", "training_iteration", "done"))


def calls_of(tuner, folder):
    script = Script([])
    tuner(
        Reports,
        tune_config=tune.TuneConfig(
            search_alg=script,
            scheduler=StopsBelow(script),
            num_samples=-1,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            callbacks=[Notes(script)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(1),
            verbose=0,
        ),
    ).fit()
    return script.calls


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_tune_itself_makes_the_same_calls_in_the_same_order(tmp_path):
    with ray_session():
        of_tune = calls_of(tune.Tuner, tmp_path)
    assert calls_of(InlineTuner, tmp_path) == of_tune
    assert [call[1] for call in of_tune if call[0] == "on_trial_start"] == [0, 1, 2, 2, 3]
