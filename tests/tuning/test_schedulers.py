from __future__ import annotations

from typing import Any
from unittest.mock import create_autospec

import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuning.config import AshaConfig, NoSchedulerConfig, ObjectiveConfig
from tuning.records import REFERENCE_KEY
from tuning.schedulers import StepAsha, create_scheduler

CONTROLLER = create_autospec(TuneController)


def new_trial(trial_id: str, **config: Any) -> Trial:
    trial = create_autospec(Trial, instance=True)
    trial.trial_id, trial.config = trial_id, config
    return trial


@pytest.fixture
def asha() -> StepAsha:
    config = AshaConfig(grace_steps=30, reduction_factor=2)
    return StepAsha(config, ObjectiveConfig(metric="val/mean_acc"), total_steps=90)


def report(asha: StepAsha, trial: Trial, step: int, value: float) -> str:
    return asha.on_trial_result(CONTROLLER, trial, {"step": step, "val/mean_acc": value})


def test_of_the_trials_that_reach_a_rung_the_worse_half_is_stopped(asha: StepAsha) -> None:
    decisions = []
    for name, value in (("a", 50.0), ("b", 60.0), ("c", 40.0), ("d", 70.0)):
        trial = new_trial(name)
        asha.on_trial_add(CONTROLLER, trial)
        decisions.append(report(asha, trial, 30, value))
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert decisions == [go, go, stop, go]


def test_rungs_count_steps_and_not_reports(asha: StepAsha) -> None:
    for name, value in (("a", 50.0), ("b", 10.0)):
        trial = new_trial(name)
        asha.on_trial_add(CONTROLLER, trial)
        assert report(asha, trial, 29, value) == TrialScheduler.CONTINUE


def test_a_reference_is_never_stopped_and_moves_no_rung(asha: StepAsha) -> None:
    reference, trial = new_trial("r", **{REFERENCE_KEY: "ft"}), new_trial("a")
    asha.on_trial_add(CONTROLLER, reference)
    asha.on_trial_add(CONTROLLER, trial)
    assert report(asha, reference, 30, 99.0) == TrialScheduler.CONTINUE
    assert report(asha, trial, 30, 1.0) == TrialScheduler.CONTINUE
    assert report(asha, reference, 60, 0.0) == TrialScheduler.CONTINUE
    asha.on_trial_complete(CONTROLLER, reference, {"step": 90, "val/mean_acc": 0.0})
    asha.on_trial_remove(CONTROLLER, reference)


def test_a_trial_at_its_last_step_is_left_to_end_by_itself(asha: StepAsha) -> None:
    for name, value in (("a", 50.0), ("b", 10.0)):
        trial = new_trial(name)
        asha.on_trial_add(CONTROLLER, trial)
        assert report(asha, trial, 90, value) == TrialScheduler.CONTINUE
        asha.on_trial_complete(CONTROLLER, trial, {"step": 90, "val/mean_acc": value})


def test_without_a_scheduler_every_trial_runs_to_its_end() -> None:
    assert isinstance(create_scheduler(NoSchedulerConfig(), ObjectiveConfig(), 90), FIFOScheduler)
