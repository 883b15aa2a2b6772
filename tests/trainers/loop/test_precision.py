import math
from dataclasses import replace

import pytest
import torch

from tests.trainers.curves import short, untimed
from trainers import fine_tune as loop
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop import setup, timing
from trainers.loop.images import open_images
from trainers.loop.precision import Precision
from trainers.loop.training import start
from trainers.methods.ft import FineTuning
from trainers.models.zero_shot import load_zero_shot
from trainers.process_state import restored_state

CPU = torch.device("cpu")
SCALE = 256.0
"""Of losses in float16, so small that nothing of the embedded model's overflows."""


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_bfloat16_where_a_gpu_does_not_emulate_it(native, monkeypatch):
    def is_bf16_supported(including_emulation=True):
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    automatic = Precision("auto", torch.device("cuda"))
    assert automatic.dtype == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("tf32", torch.float32),
     ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)  # fmt: skip
def test_matrix_products_without_a_gpu_have_the_precision(name, dtype):
    """And float16 alone scales its losses."""
    precision = Precision(name, CPU)
    assert precision.dtype == dtype
    assert precision.scaler().is_enabled() == (name == "fp16")
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_tf32_is_that_of_its_run_alone(trial, monkeypatch):
    """In one process, and no head is made of rounded products."""
    heads = []

    def load(*arguments):
        heads.append(torch.get_float32_matmul_precision())
        return load_zero_shot(*arguments)

    monkeypatch.setattr(setup, "load_zero_shot", load)
    with restored_state():
        for name, products in (("tf32", "high"), ("tf32", "high"), ("fp32", "highest")):
            start(short(trial, "ft", precision=name))
            assert torch.get_float32_matmul_precision() == products
    assert heads == ["highest"] * 3


@pytest.mark.parametrize("method", ["lipsum_ft", "flyp"])
def test_steps_in_16_bits_are_near_those_in_32(trial, method):
    exact, brain, half = (_steps(trial, method, name) for name in ("fp32", "bf16", "fp16"))
    for figures, tolerance in ((brain, 0.15), (half, 0.05)):
        assert not torch.equal(figures, exact)
        assert torch.allclose(figures, exact, rtol=tolerance, atol=tolerance)


def _steps(trial, method, precision):
    """Loss, task loss, regulariser and gradient norm of three steps, (3, 4)."""
    training = start(short(trial, method, precision=precision, optim__micro_batch_size=4))
    if training.scaler.is_enabled():
        training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": SCALE})
    images = open_images(training.setup.config.data, "real", "train")
    batches = training_batches(training, images)
    figures = [training.step(*batch)[:4] for batch in batches]
    assert {p.dtype for p in training.student.parameters()} == {torch.float32}
    return torch.stack(figures)


def test_a_float16_run_outlives_overflows_and_resumes_with_its_scale(trial, tmp_path, monkeypatch):
    config = short(trial, "ft", precision="fp16", steps=8, eval__every=4)
    monkeypatch.setattr(loop, "start", _start_at(2.0**22))
    undisturbed = fine_tune(config)
    first = next(undisturbed)
    first.save(tmp_path)
    scale = first.training.scaler.get_scale()
    *_, last = undisturbed
    taken = {int(state["step"]) for state in last.training.optimizer.state.values()}
    halved = 22 - math.log2(last.training.scaler.get_scale())
    assert halved > 0
    assert taken == {8 - halved}
    assert all(math.isfinite(value) for value in last.metrics.values())

    monkeypatch.undo()
    resumed = fine_tune(config, resume_from=tmp_path)
    repeated = next(resumed)
    assert (
        repeated.training.scaler.get_scale() == scale != Precision("fp16", CPU).scaler().get_scale()
    )
    *_, again = resumed
    assert untimed(again) == untimed(last)
    pairs = zip(
        last.training.student.parameters(), again.training.student.parameters(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)


class Overflowing(FineTuning):
    """Its loss is infinite in some steps."""

    def loss(self, batch, step):
        whole = super().loss(batch, step)
        return replace(whole, task=whole.task * math.inf) if step.number in self._at else whole

    _at = (1,)


@pytest.mark.parametrize("at", [0, 1, 2], ids=["first", "second", "after a report"])
def test_a_skipped_step_of_float16_is_no_divergence(at, trial, monkeypatch):
    monkeypatch.setattr(Overflowing, "_at", (at,))
    monkeypatch.setattr(loop, "start", _start_at(SCALE))
    config = short(trial, "ft", precision="fp16", steps=4, eval__every=2)
    *_, report = fine_tune(config.model_copy(update={"method": Overflowing()}))
    assert all(math.isfinite(value) for value in report.metrics.values())
    taken = {int(state["step"]) for state in report.training.optimizer.state.values()}
    assert taken == {3}
    assert report.training.scaler.get_scale() == SCALE / 2


@pytest.mark.parametrize(
    ("precision", "at", "steps"),
    [("fp16", range(1, 12), 12), ("fp16", range(4), 4), ("fp32", (1,), 4)],
    ids=["float16 in every step", "float16 without a finite loss", "float32 once"],
)
def test_a_loss_that_is_infinite_for_good_has_diverged(precision, at, steps, trial, monkeypatch):
    monkeypatch.setattr(Overflowing, "_at", at)
    monkeypatch.setattr(timing, "LEAST_SCALE", 2.0**6)  # ten halvings
    config = short(trial, "ft", precision=precision, steps=steps, eval__every=steps)
    with pytest.raises(TrainingDiverged, match=f"step {steps}"):
        list(fine_tune(config.model_copy(update={"method": Overflowing()})))


def test_what_overflows_in_float16_does_not_count(trial, monkeypatch):
    monkeypatch.setattr(loop, "start", _start_at(SCALE))

    def figures_of(steps, at):
        monkeypatch.setattr(Overflowing, "_at", at)
        config = short(trial, "ft", precision="fp16", steps=steps, eval__every=steps)
        (report,) = fine_tune(config.model_copy(update={"method": Overflowing()}))
        return [report.metrics[name] for name in ("train/loss", "train/grad_norm")]

    assert figures_of(2, at=(1,)) == pytest.approx(figures_of(1, at=()))


def _start_at(scale):
    """`start` of a run whose losses have this scale."""

    def start_at(*arguments, **options):
        training = start(*arguments, **options)
        training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": scale})
        return training

    return start_at
