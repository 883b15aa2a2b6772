"""The inline tuner makes the calls of Ray Tune itself, in its order."""

import pytest
from ray import tune

from tests.tuning.execution.inline_tuner import InlineTuner
from tests.tuning.execution.scripted import Script, StopsBelow
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


class Notes(tune.Callback):
    """Writes down every call but those at each turn of Tune's loop, which also turns idly."""

    def __init__(self, script):
        self.script = script

    def __getattribute__(self, name):
        if not name.startswith(("on_trial", "on_experiment", "setup")):
            return super().__getattribute__(name)
        script = super().__getattribute__("script")

        def note(trial=None, result=None, **_):
            last = trial.last_result if name == "on_trial_complete" else None
            script.note(name, trial and trial.trial_id, result or last)

        return note

    def __getstate__(self):
        return {}


def calls_of(tuner, folder):
    script = Script(TRIALS)
    tuner(
        Reports,
        tune_config=tune.TuneConfig(
            search_alg=script,
            scheduler=StopsBelow(script, step=2, bound=4),
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
