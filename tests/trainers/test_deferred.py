"""OOD domains evaluated from the weights that a run leaves: the figures are those of the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.trainers.workers import TwoWorkers
from trainers import deferred
from trainers.config import TrialConfig
from trainers.data.storage import Store, open_store
from trainers.deferred import evaluate_domain
from trainers.errors import ConfigError
from trainers.evaluation import metric_names
from trainers.fine_tune import Report, fine_tune
from trainers.pending import is_complete, leave_pending, read_pending

OOD = ("sketch", "clipart")
METHODS = {
    "ft": {},
    "ema": {"ema_decay": 0.5},  # evaluates an average
    "wise_ft": {"alpha": 0.4},  # an interpolation
    "tpgm": {"projection_steps": 3},  # a projection that looks at ID validation pictures
    "flyp": {},  # a head that the trained text encoder makes
    "r_adapter": {"ema_decay": 0.5},  # adapters, averaged, which the weights have merged in
}

Inline = Callable[[str], tuple[TrialConfig, list[dict[str, float]]]]


def configuration(root: Path, method: str, steps: int = 2) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {"root": str(root), "ood_domains": list(OOD)},
            "method": {"name": method, **METHODS[method]},
            "optim": {"lr": 3e-2 if method == "r_adapter" else 5e-4, "batch_size": 8},
            "eval": {"every": 1},
            "steps": steps,
        }
    )


@pytest.fixture(scope="module")
def inline(pictures_root: Path) -> Inline:
    """A run that evaluates everything itself: its configuration and its reports."""

    @cache
    def run(method: str) -> tuple[TrialConfig, list[dict[str, float]]]:
        config = configuration(pictures_root, method)
        return config, [report.metrics for report in fine_tune(config)]

    return run


def measures(metrics: dict[str, float]) -> dict[str, float]:
    return {n: v for n, v in metrics.items() if n.startswith(("id_val/", "ood_val/", "val/"))}


def leave(store: Store, report: Report, checkpoint: Path) -> str:
    report.save(checkpoint)
    data = report.run.config.data
    return leave_pending(store, checkpoint, report.step, report.metrics, data).name


def put_together(config: TrialConfig, store: Store, name: str) -> dict[str, float]:
    pending, folder = read_pending(store, name), store.local_path(name)
    of = {d: evaluate_domain(config, folder, d, pending.temperature) for d in pending.ood_domains}
    return pending.completed({domain: found.measures for domain, found in of.items()})


@pytest.mark.parametrize("method", METHODS)
def test_what_others_measure_of_the_left_weights_is_bit_for_bit_what_the_run_would_have(
    method: str, inline: Inline, tmp_path: Path
) -> None:
    config, expected = inline(method)
    store = open_store(tmp_path / "pending")
    names = []
    for report in fine_tune(config, ood_elsewhere=lambda: True):
        assert not any(name.startswith(("ood_val/", "val/")) for name in report.metrics)
        assert not is_complete(report.metrics, config.data)
        names.append(leave(store, report, tmp_path / "checkpoint"))
    for name, whole in zip(names, expected, strict=True):
        found = put_together(config, store, name)
        assert is_complete(found, config.data)
        assert found.keys() == whole.keys()
        assert measures(found) == measures(whole)
        assert measures(found).keys() == set(metric_names(config.data))
    assert expected[-1]["ood_val/mean_feature_distortion"] > 1e-3


def test_the_zero_shot_model_is_loaded_once_a_process_for_all_trials_of_a_search(
    inline: Inline, pictures_root: Path, tmp_path: Path
) -> None:
    config, expected = inline("ft")
    store = open_store(tmp_path / "pending")
    *_, last = fine_tune(config, ood_elsewhere=lambda: True)
    name = leave(store, last, tmp_path / "checkpoint")
    deferred._warm.cache_clear()
    for _ in range(2):
        assert measures(put_together(config, store, name)) == measures(expected[-1])
    other = config.model_copy(update={"seed": 7, "steps": 9, "parallel": "fsdp"})
    evaluate_domain(other, store.local_path(name), "sketch", 1.0)
    assert deferred._warm.cache_info().misses == 1


def test_a_run_may_leave_some_evaluations_to_others_and_do_the_rest_itself(
    inline: Inline, tmp_path: Path
) -> None:
    config, expected = inline("ft")
    spare = iter([True, False])
    first, second = (r.metrics for r in fine_tune(config, ood_elsewhere=lambda: next(spare)))
    assert not is_complete(first, config.data)
    assert measures(second) == measures(expected[1])


@pytest.mark.parametrize("method", ["tpgm", "flyp", "r_adapter"])
def test_a_resumed_run_repeats_a_report_that_others_were_to_complete_with_all_its_figures(
    method: str, inline: Inline, tmp_path: Path
) -> None:
    config, expected = inline(method)
    first = next(fine_tune(config, ood_elsewhere=lambda: True))
    first.save(tmp_path / "checkpoint")
    repeated, second = fine_tune(config, resume_from=tmp_path / "checkpoint")
    assert measures(repeated.metrics) == measures(expected[0])
    assert repeated.metrics.keys() == expected[0].keys()
    assert measures(second.metrics) == measures(expected[1])


def test_two_workers_leave_weights_that_are_measured_as_they_would_have(
    two_workers: TwoWorkers, pictures_root: Path, tmp_path: Path
) -> None:
    config = configuration(pictures_root, "ft").model_copy(update={"parallel": "fsdp", "steps": 1})
    (metrics, name), _ = two_workers(_one_step, config, tmp_path)
    found = put_together(config, open_store(tmp_path / "pending"), name)
    assert measures(found) == pytest.approx(measures(metrics), rel=1e-5, abs=1e-5)


def _one_step(config: TrialConfig, folder: Path) -> tuple[dict[str, float], str]:
    """The report of a run that leaves nothing to others, and the folder of one that does."""
    (whole,) = fine_tune(config)
    (report,) = fine_tune(config, ood_elsewhere=lambda: True)
    report.save(folder / "checkpoint")
    if report.run.rank != 0:
        return whole.metrics, ""
    store = open_store(folder / "pending")
    checkpoint, data = folder / "checkpoint", config.data
    left = leave_pending(store, checkpoint, report.step, report.metrics, data)
    return whole.metrics, left.name


def test_weights_of_other_classes_are_refused(inline: Inline, tmp_path: Path) -> None:
    config, _ = inline("ft")
    first = next(fine_tune(config, ood_elsewhere=lambda: True))
    object.__setattr__(first.run, "class_names", tuple("abcdefgh"))
    store = open_store(tmp_path / "pending")
    name = leave(store, first, tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match=f"{name}: trained on other classes"):
        evaluate_domain(config, store.local_path(name), "sketch", 1.0)
