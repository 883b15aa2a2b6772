"""The zero-shot metrics of a search are evaluated once for each model and data."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tuning.run_folders import swap_classes
from tuning.config.schema import ResourcesConfig
from tuning.execution import zero_shot
from tuning.execution.zero_shot import CACHE_VARIABLE, zero_shot_metrics

METRICS = {"id_val/acc": 100 / 3, "id_val/nll": float("inf")}


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """The configurations that were evaluated, with an empty cache."""
    calls = []

    def evaluate(trial, resources, final_split):
        calls.append(trial)
        return METRICS

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(zero_shot, "_evaluate_on_cluster", evaluate)
    monkeypatch.setattr("ray.cluster_resources", dict)
    return calls


def test_what_the_metrics_do_not_depend_on_is_not_evaluated_again(trial, evaluated):
    other = trial.model_copy(update={"steps": 99, "seed": 5})
    assert [zero_shot_metrics(t, ResourcesConfig()) for t in (trial, trial, other)] == [METRICS] * 3
    assert evaluated == [trial]


def test_other_data_and_hardware_are_evaluated(trial, evaluated, images_root, tmp_path):
    zero_shot_metrics(trial, ResourcesConfig())
    zero_shot_metrics(trial, ResourcesConfig(gpus_per_worker=1))
    assert len(evaluated) == 2
    root = Path(shutil.copytree(images_root, tmp_path / "images"))
    swap_classes(root, "real", "val")
    data = trial.data.model_copy(update={"root": str(root)})
    other = trial.model_copy(update={"data": data})
    zero_shot_metrics(other, ResourcesConfig())
    swap_classes(root, "sketch", "val")
    zero_shot_metrics(other, ResourcesConfig())
    assert len(evaluated) == 4


def test_a_model_of_the_hub_and_plugins_are_never_cached(trial, evaluated):
    hub = trial.model_copy(update={"model": trial.model.model_copy(update={"name": "hf-hub:a/b"})})
    for config in (hub, trial.model_copy(update={"plugins": ("mine",)})):
        zero_shot_metrics(config, ResourcesConfig())
        zero_shot_metrics(config, ResourcesConfig())
    assert len(evaluated) == 4


def test_a_damaged_cache_is_replaced_and_many_may_write(trial, evaluated, tmp_path):
    def measure(_):
        return zero_shot_metrics(trial, ResourcesConfig())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(measure, range(16))) == [METRICS] * 16
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_text("{")
    number = len(evaluated)
    assert measure(0) == measure(0) == METRICS
    assert len(evaluated) == number + 1
