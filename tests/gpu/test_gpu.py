"""What only a GPU can show: `make test-gpu`. Every other test has none."""

import gc
import math

import pytest
import torch
from rich.console import Console

from tests.trainers.curves import PARTS, changed, configured, curve, first_batch, short
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.loop.training import Training, start
from trainers.methods.registry import METHODS
from tuning import load_config, run_search

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]

SUMS_IN_ANY_ORDER = {"rel": 2e-2, "abs": 2e-2}
"""GPUs add up in any order, and as the CPU does not."""


@pytest.fixture
def without_waits(monkeypatch):
    """All steps of a process but its first two raise if they wait for the GPU."""
    step, taken = Training.step, []

    def checked(*arguments, **options):
        taken.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(taken) > 2 else "default")
        try:
            return step(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Training, "step", checked)
    return taken


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_resumes_and_evaluates(name, trial, whole_root, tmp_path, without_waits):
    """As on the CPU. Steps do not wait for the GPU."""
    config = changed(configured(trial, name), precision="fp32", data__root=str(whole_root))
    expected = curve(config, device="cpu")
    del without_waits[:]
    found, checkpoint = [], tmp_path / "checkpoint"
    for report in fine_tune(config):
        found.append(report.metrics)
        if not report.is_last:
            report.save(checkpoint)
    assert len(without_waits) == config.steps
    assert {p.device.type for p in report.training.student.parameters()} == {"cuda"}
    resumed = curve(config, resume_from=checkpoint)
    for one, other, again in zip(expected, found, resumed, strict=True):
        assert one.keys() <= other.keys()
        for metric in one.keys() - {PARTS}:
            if metric.endswith(("nll", "loss")):
                assert other[metric] == pytest.approx(one[metric], **SUMS_IN_ANY_ORDER), metric
                assert again[metric] == pytest.approx(one[metric], **SUMS_IN_ANY_ORDER), metric
    metrics = report.tested(load_split(config, "test")).metrics
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", ["lipsum_ft", "flyp"])
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_16_bits_train_as_32_do(precision, name, trial, without_waits):
    """And the scaler of float16 finds its scale."""
    config = short(trial, name, steps=12, eval__every=12, optim__lr=1e-5)
    (exact,) = curve(changed(config, precision="fp32"))
    (report,) = fine_tune(changed(config, precision=precision))
    loss = report.metrics["train/loss"]
    assert loss == pytest.approx(exact["train/loss"], rel=0.15, abs=0.15)
    assert report.training.scaler.is_enabled() == (precision == "fp16")


def test_a_compiled_model_trains_as_an_eager_one(trial):
    config = short(trial, "ft", steps=4, eval__every=4, precision="fp32")
    (eager,), (compiled,) = curve(config), curve(changed(config, compile=True))
    assert compiled["train/loss"] == pytest.approx(eager["train/loss"], rel=1e-2)


@pytest.mark.parametrize("name", ["ft", "lipsum_ft", "flyp"])
def test_a_batch_that_does_not_fit_is_halved(name, trial):
    """And has the loss of small parts, and leaves nothing in the way."""
    model = {"name": "ViT-B-32", "pretrained": "random"}
    config = short(trial, name, model=model, precision="fp32", zero_shot_cache_gb=0)
    config = changed(config, optim__batch_size=2048, optim__micro_batch_size=64, optim__lr=1e-12)
    torch.cuda.reset_peak_memory_stats()
    training = start(config)
    eight = first_batch(start(changed(config, optim__batch_size=8)))
    views, labels = (part.repeat(256, *[1] * (part.dim() - 1)) for part in eight)
    expected = training.step(views, labels)
    # Room for a fourth of the batch, approximately.
    peak = torch.cuda.max_memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 4 * peak / total))
    try:
        training.micro_batch_size = 2048
        training.progress.step = 0
        found = training.step(views, labels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert training.micro_batch_size < 2048
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_a_trial_leaves_no_memory_behind(trial):
    living = []
    for seed in range(3):
        list(fine_tune(short(trial, "lipsum_ft", seed=seed)))
        gc.collect()
        living.append(torch.cuda.memory_allocated())
    assert living[0] >= living[1] == living[2]


@pytest.mark.ray
@pytest.mark.parametrize("together", [1, 2])
def test_the_trials_of_a_search_share_the_card(together, whole_root, tmp_path):
    overrides = {
        "trial.data.root": whole_root,
        "trial.steps": 40,
        "trial.eval.every": 20,
        "trial.optim.batch_size": 16,
        "search.scheduler": "{name: none}",
        "search.storage": tmp_path,
        "search.budget.trials": 4,
        "search.resources.max_concurrent": together,
        "search.resources.gpus_per_worker": 1 / together,
    }
    file = load_config("quickstart", [f"{key}={value}" for key, value in overrides.items()])
    result = run_search(file, console=Console(quiet=True))
    assert result.failed == []
    for record in result.run.records:
        metrics = record.metrics
        share = metrics["cost/gpu_seconds"] / metrics["cost/seconds"]
        assert share == pytest.approx(1 / together)
        assert metrics["cost/gpu_memory_gb"] > 0
