"""Predictions for GPUs that are not here, by a step on fake tensors."""

from dataclasses import replace

import pytest
import torch

from tests.trainers.tiny_models import student_of
from tests.tuning.planning.real_step import measured, trial
from tests.tuning.result_tables import text_of
from trainers.errors import ConfigError
from trainers.loop.fake_step import FILLED, Operation, step_cost
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts
from tuning.config.schema import SearchFile
from tuning.planning import cards
from tuning.planning.cards import CARDS, EFFICIENCY, Card, known_card, plan_on, render

SMALL = Card(memory_gb=0.065, bandwidth_gb_s=320, fp32_tflops=8, half_tflops=65)


def planned(config, *names, **search):
    """The predictions for cards of these names, for 7,000 images of ten classes."""
    file = SearchFile.model_validate({"trial": config, "search": search})
    return file, *plan_on(file, names, images=7000, classes=10)


def flops_of(step):
    """Operations of all micro-batches of a step."""
    of_recorded = sum(operation.flops for operation in step.of_micro_batches)
    return step.micro_batches / step.recorded * of_recorded


@pytest.mark.parametrize("method", ["ft", "lipsum_ft"])
def test_memory_and_operations_are_those_of_a_real_step(method, monkeypatch):
    """In float32. PyTorch does not count the operations of its fused attention for inference, which
    a fake step does not take."""
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    config = trial("tiny-clip", method, 16)
    predicted = step_cost(config, classes=10)
    peak_bytes, flops = measured(config, classes=10)
    assert predicted.peak_bytes == pytest.approx(peak_bytes, rel=0.1)
    assert flops_of(predicted) == flops


def test_a_step_of_many_micro_batches_costs_as_that_of_two():
    """Of a contrastive method, whose texts are drawn for each image."""
    optim = {"batch_size": 8, "micro_batch_size": 4}
    two = step_cost(trial("tiny-clip", "flyp", 8, optim=optim), classes=10)
    optim = {"batch_size": 16, "micro_batch_size": 4}
    four = step_cost(trial("tiny-clip", "flyp", 16, optim=optim), classes=10)
    assert (two.micro_batches, four.micro_batches) == (2, 4)
    assert flops_of(four) == 2 * flops_of(two)


def test_the_optimiser_moves_weights_gradients_and_moments_twice():
    """By hand, of float32: 4 bytes, of four tensors of a weight each, read and written."""
    config = trial("tiny-clip", "ft", 8)
    prompts = Prompts(tuple(f"class {number}" for number in range(10)), ("a {}.",))
    student = student_of(load_zero_shot(config.model, prompts))
    weights = sum(p.numel() for p in student.trained.values())
    moved = [op.moved for op in step_cost(config, classes=10).of_optimizer]
    assert max(moved) == pytest.approx(2 * 4 * 4 * weights, rel=0.01)


def test_a_kernel_takes_as_long_as_its_operations_or_its_bytes():
    card = Card(80, bandwidth_gb_s=2000, fp32_tflops=20, half_tflops=300, tf32_tflops=150)
    product = Operation(3 * 10**12, torch.bfloat16, 10**9, shared=False)
    copy = Operation(0, torch.float32, 10**10, shared=True)
    assert card.seconds([product, copy], "bf16") == pytest.approx((0.01 + 0.005) / EFFICIENCY)
    assert card.seconds([product, copy], "bf16", shared=False) == pytest.approx(0.01 / EFFICIENCY)
    single = product._replace(dtype=torch.float32)
    assert card.seconds([single], "fp32") == pytest.approx(0.15 / EFFICIENCY)
    assert card.seconds([single], "tf32") == pytest.approx(0.02 / EFFICIENCY)


def test_precision_is_that_of_the_card():
    config = trial("tiny-clip", "ft", 8, precision="auto")
    assert [CARDS[name].precision(config) for name in ("T4", "L4")] == ["fp32", "bf16"]


def test_a_search_on_two_cards(monkeypatch):
    monkeypatch.setitem(cards.CARDS, "small", SMALL)
    config = trial("tiny-clip", "lipsum_ft", 64, steps=1000)
    file, data, (large, small) = planned(config, "A100-80GB", "small", budget={"trials": 8})
    assert (data.classes, data.validation) == (10, [1000])
    assert (large.micro_batch, small.micro_batch) == (64, 32)
    assert small.step.peak_bytes <= FILLED * 1e9 * SMALL.memory_gb
    assert flops_of(small.step) == flops_of(large.step)
    for found in (large, small):
        evaluations_s = found.plan.full_s - 1000 * found.plan.step_s
        assert 0 < evaluations_s < 0.1 * found.plan.full_s
        assert found.plan.prices[0].device_hours == pytest.approx(9 * found.plan.full_s / 3600)
    lines = text_of(render(file, data, [large, small]), 160).splitlines()
    assert "7,000 training images, 10 classes" in lines[0]
    assert [line.split()[0] for line in lines[3:5]] == ["A100-80GB", "small"]
    assert any(line.startswith("Predicted on ") for line in lines)
    assert large.gpu_hours["trial"] == large.plan.full_s / 3600


def test_cards_that_need_more_cores_than_a_worker_has_are_named_with_what_to_do():
    config, resources = trial("tiny-clip", "ft", 64), {"cpus_per_worker": 8}
    file, data, (found,) = planned(config, "A100-80GB", resources=resources)
    slow, fast = (replace(found, name=name, cores=n) for name, n in (("slow", 8), ("fast", 18)))
    text = " ".join(text_of(render(file, data, [slow, fast]), 160).split())
    assert "`--resize 256`, which need fewer: fast 10." in text
    assert "which need fewer" not in text_of(render(file, data, [slow]), 160)


def test_a_card_that_holds_no_image_is_too_small(monkeypatch):
    monkeypatch.setitem(cards.CARDS, "tiny", replace(SMALL, memory_gb=1e-6))
    file, data, plans = planned(trial("tiny-clip", "ft", 2), "tiny")
    assert plans[0].step is None
    assert "too small" in text_of(render(file, data, plans), 120)


def test_trials_that_share_a_card_share_its_speed():
    """So a trial takes as many GPU-hours."""

    def on_a_card(gpus):
        config, resources = trial("tiny-clip", "ft", 8), {"gpus_per_worker": gpus}
        _, _, (found,) = planned(config, "L4", resources=resources)
        return found

    whole, half = on_a_card(1), on_a_card(0.5)
    assert half.plan.step_s == pytest.approx(2 * whole.plan.step_s)
    assert half.gpu_hours == pytest.approx(whole.gpu_hours)


@pytest.mark.parametrize(
    ("name", "card"), [("a100", "A100-80GB"), ("A100-40gb", "A100-40GB"), ("l4", "L4")]
)
def test_a_card_is_found_by_its_name_without_its_memory(name, card):
    assert known_card(name) == card


def test_an_unknown_card_is_named_with_a_near_one():
    with pytest.raises(ConfigError, match="did you mean 'A100-80GB'") as error:
        plan_on(SearchFile(), ["A100-80"])
    assert (error.value.key, error.value.value) == ("--on", "A100-80")
