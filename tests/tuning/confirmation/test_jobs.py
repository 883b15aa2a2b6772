from __future__ import annotations

from tests.tuning import fakes
from tuning.confirmation.jobs import kept_metrics


def test_metrics_of_test_splits_costs_and_two_validation_accuracies_are_kept() -> None:
    tested = {"id_test/acc": 70.0, "ood_test/mean_acc": 50.0, "test/mean_acc": 60.0}
    costs = {"cost/seconds": 9.0, "cost/gpu_seconds": 0.0, "cost/cpu_seconds": 8.0}
    more = {"cost/eval_seconds": 1.0, "train/lr": 0.1}
    validated = {"id_val/acc": 80, "ood_val/mean_acc": 60}
    kept = kept_metrics(fakes.report(40, 80, 60) | tested | costs | more)
    assert kept == tested | costs | validated
