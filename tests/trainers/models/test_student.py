"""The student of every kind of image tower, and both methods on each."""

import pytest
import torch
from torch import nn

from tests.trainers.methods.by_hand import at
from tests.trainers.tiny_models import KINDS, random_model, student_of
from trainers.methods.base import Batch
from trainers.methods.ft import FineTuning
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.models.student import Outputs
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts

PROMPTS = Prompts(("cat", "dog", "fish"), ("a photo of a {}.",))
METHODS = (FineTuning(), LipsumFineTuning(text_count=5))
TEXT_KINDS = {
    "custom-text", "projection-with-bias", "no-projection", "bidirectional", "bidirectional-clip",
    "last-token", "causal-last-token", "siglip2",
}  # fmt: skip
"""Kinds with the image tower of another one; `test_text` compares their texts."""


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind not in TEXT_KINDS])
def zero_shot(request, tmp_path_factory):
    made = load_zero_shot(random_model(tmp_path_factory.mktemp("model"), request.param), PROMPTS)
    made.clip.kind = request.param
    return made


def images(zero_shot):
    size = zero_shot.image_input.size
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def step(student, zero_shot, method):
    pixels, labels = images(zero_shot), torch.tensor([0, 1, 2, 0])
    before = zero_shot.image_features(pixels)
    nothing = before.new_zeros(0, *before.shape)
    scale = torch.tensor(zero_shot.logit_scale)
    teacher = Outputs(before, scale * before @ zero_shot.head.T, nothing, scale)
    where = at(zero_shot, 0, weights=student.trained)
    loss = method.loss(Batch(labels, student(pixels), teacher), where)
    loss.total.backward()
    return 0 if loss.reg is None else loss.reg.detach()


def test_it_starts_as_the_zero_shot_model(zero_shot):
    student, pixels = student_of(zero_shot), images(zero_shot)
    features, logits, _, _ = student(pixels)
    encoded = zero_shot.clip.encode_image(pixels, normalize=True)
    torch.testing.assert_close(features, encoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(zero_shot.image_features(pixels), encoded, rtol=0, atol=1e-5)
    scale = zero_shot.clip.logit_scale.exp()
    torch.testing.assert_close(logits, scale * encoded @ zero_shot.head.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_step_reaches_every_trained_parameter_and_no_other(zero_shot, method):
    student = student_of(zero_shot)
    has_fixed_positions = zero_shot.clip.kind == "fixed-positions"
    assert step(student, zero_shot, method) == pytest.approx(0, abs=1e-6)
    for name, parameter in student.named_parameters():
        fixed = has_fixed_positions and name == "visual.positional_embedding"
        assert parameter.requires_grad == (parameter.grad is not None) == (not fixed), name
        assert fixed or bool(parameter.grad.isfinite().all())
    assert all(p.grad is None and not p.requires_grad for p in zero_shot.clip.parameters())


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_training_leaves_running_statistics_as_they_were(kind, tmp_path):
    zero_shot = load_zero_shot(random_model(tmp_path, kind), PROMPTS)
    student = student_of(zero_shot).eval().train()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    assert any("running_mean" in name for name in before)
    step(student, zero_shot, METHODS[0])
    after = dict(student.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    trained = [m.weight.grad for m in norms if m.weight.grad is not None]
    assert trained
    assert any(bool(gradient.any()) for gradient in trained)


def test_training_draws_no_random_numbers_of_its_own(tmp_path):
    zero_shot = load_zero_shot(random_model(tmp_path, "patch-dropout"), PROMPTS)
    student = student_of(zero_shot).train()
    state = torch.get_rng_state()
    first, again = (student(images(zero_shot)).features for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
