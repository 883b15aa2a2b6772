from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.tuning import fakes
from trainers.config import TrialConfig
from tuning.config.schema import ResourcesConfig
from tuning.confirmation.jobs import Job, kept_metrics, run_jobs
from tuning.confirmation.results import TestResult
from tuning.execution.ray_session import ray_session


def test_metrics_of_test_splits_costs_and_two_validation_accuracies_are_kept():
    tested = {"id_test/acc": 70.0, "ood_test/mean_acc": 50.0, "test/mean_acc": 60.0}
    costs = {"cost/seconds": 9.0, "cost/gpu_seconds": 0.0, "cost/cpu_seconds": 8.0}
    more = {"cost/eval_seconds": 1.0, "train/lr": 0.1}
    validated = {"id_val/acc": 80, "ood_val/mean_acc": 60}
    kept = kept_metrics(fakes.report(40, 80, 60) | tested | costs | more)
    assert kept == tested | costs | validated


@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray")
def test_a_hanging_training_fails(trial, tmp_path):
    """Its fifth step takes for ever."""
    plugin = str(Path(__file__).parents[1] / "execution" / "hangs.py")
    method = {"plugins": [plugin], "method": {"name": "hangs", "waits": True}}
    config = TrialConfig.model_validate(trial.model_dump(mode="json") | method)
    result = TestResult("trial-000", "trial", 1000, {}, (), {})
    results = SimpleNamespace()
    resources = ResourcesConfig(hang_after_s=0.5)
    console = Console(quiet=True)
    with ray_session():
        failed = run_jobs([Job(config, result)], resources, results, str(tmp_path), console)
    assert failed.keys() == {result.key}
    assert "no report after 5 s of training: it hangs" in failed[result.key]
