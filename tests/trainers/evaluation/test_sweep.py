"""WiSE-FT's curve of a real run: when it is measured, and where it begins and ends."""

from __future__ import annotations

import pytest

from tests.trainers.curves import changed
from tests.trainers.methods.contract import configured
from trainers.config import TrialConfig, with_overrides
from trainers.fine_tune import fine_tune
from trainers.loop.state import load_split, start

POINTS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc")


@pytest.mark.parametrize("method", ["lipsum_ft", "wise_ft", "flyp", "r_adapter"])
def test_the_sweep_ends_at_zero_shot_and_at_the_last_report(
    method: str, trial: TrialConfig
) -> None:
    changes = {"optim__lr": 3e-2 if method == "r_adapter" else 1e-3, "precision": "fp32"}
    changes |= {"data__ood_domains": ["sketch"], "eval__wise_alphas": [0, 0.3, 1], "steps": 4}
    config = changed(configured(trial, method), **changes)
    first, last = (report.metrics for report in fine_tune(config))
    assert not [name for name in first if name.startswith("wise/")]
    swept = {name for name in last if name.startswith("wise/")}
    assert swept == {f"wise/{alpha}/{name}" for alpha in ("0", "0.3", "1") for name in POINTS}
    before = start(config).evaluate("val", load_split(config, "val"))
    for name in POINTS:
        assert last[f"wise/0/{name}"] == pytest.approx(before[name])
        assert last[f"wise/1/{name}"] == pytest.approx(last[name])
    assert {last[f"wise/1/{name}"] for name in POINTS} != {before[name] for name in POINTS}


def test_a_run_without_ood_domains_has_a_curve_of_id_accuracy(trial: TrialConfig) -> None:
    changes = {"data.ood_domains": [], "eval.wise_alphas": [0.5], "steps": 1, "method.name": "ft"}
    (report,) = fine_tune(with_overrides(trial, changes, "test"))
    swept = [name for name in report.metrics if name.startswith("wise/")]
    assert swept == ["wise/0.5/id_val/acc"]
