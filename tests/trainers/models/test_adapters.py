"""Merged adapters against adapters that stand in the network, as forward hooks."""

from contextlib import ExitStack, contextmanager
from typing import cast

import pytest
import torch
from torch import nn

from tests.trainers.tiny_models import random_model
from trainers.models.adapters import GAIN
from trainers.models.image import pooled_features
from trainers.models.student import Student
from trainers.models.zero_shot import load_zero_shot
from trainers.texts.prompts import Prompts

PROMPTS = Prompts(("cat", "dog"), ("a {}.",))
TIMM_VIT = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}


def student_of(kind, folder):
    """With random adapters in it."""
    changes = {"vision_cfg": TIMM_VIT} if kind == "timm" else {}
    model = random_model(folder, kind, **changes)
    student = prepared(load_zero_shot(model, PROMPTS))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.trained.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return student


def prepared(zero_shot):
    """As R-Adapter prepares it."""
    student = Student(zero_shot)
    student.train_adapters()
    return student


@contextmanager
def hooked(encoder, adapters):
    """Within the block, ``x + scale g A x`` stands after every attention and every MLP."""
    assert adapters.scale is not None
    with ExitStack() as stack:
        for index, site in enumerate(adapters.sites):
            change = adapters.scale[index] * adapters.gains[index] * adapters.maps[index]
            module = encoder.get_submodule(site.rpartition(".")[0])

            def adapt(_, __, output, change=change):
                branch = output[0] if isinstance(output, tuple) else output
                adapted = branch + branch @ change.T
                return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

            stack.enter_context(module.register_forward_hook(adapt))
        yield


@pytest.mark.parametrize("kind", ["clip", "custom-text", "quick-gelu", "coca", "timm"])
def test_merged_adapters_say_what_adapters_in_the_network_say(kind, tmp_path):
    student = student_of(kind, tmp_path)
    size = 160 if kind == "timm" else 32
    images = torch.randn(3, 3, size, size)
    tokens = torch.randint(1, 49_000, (3, 24))
    tokens[:, -1] = 49_407
    assert student.visual_adapters is not None
    assert student.text_adapters is not None
    for adapters in (student.visual_adapters, student.text_adapters):
        adapters.scale = torch.tensor([1.25, 0.0, 1.0, 2.0] * (len(adapters) // 4))
    text = cast(nn.Module, student.text)
    with torch.no_grad():
        found = student(images, tokens[None])
        plain = pooled_features(student.visual, images)
        with hooked(student.visual, student.visual_adapters):
            features = pooled_features(student.visual, images)
        with hooked(text, student.text_adapters):
            text_features = text(tokens)
    normalize = nn.functional.normalize
    assert (normalize(features, dim=-1) - normalize(plain, dim=-1)).abs().max() > 1e-3
    torch.testing.assert_close(found.features, normalize(features, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text_features[0], text_features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "coca"])
def test_every_block_of_both_encoders_has_two_adapters(kind, tmp_path):
    student = student_of(kind, tmp_path)
    assert student.visual_adapters is not None
    assert student.text_adapters is not None
    assert len(student.visual_adapters) == len(student.text_adapters) == 2 * 2
    outputs = student(torch.randn(2, 3, 32, 32), torch.randint(1, 49_407, (1, 2, 24)))
    (outputs.features.sum() + outputs.text_features.sum()).backward()
    for name, parameter in student.trained.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert {name.partition(".")[0] for name in student.trained} == {
        "visual_adapters",
        "text_adapters",
    }


def test_new_adapters_change_nothing_and_can_learn(tmp_path):
    student = prepared(load_zero_shot(random_model(tmp_path, "clip"), PROMPTS))
    assert student.visual_adapters is not None
    assert student.visual_adapters.gains.tolist() == pytest.approx([GAIN] * 4)
    images = torch.randn(3, 3, 32, 32)
    features = student(images).features
    plain = nn.functional.normalize(pooled_features(student.visual, images), dim=-1)
    torch.testing.assert_close(features, plain, rtol=0, atol=1e-6)
    features.square().sum(dim=0)[0].backward()
    assert all(bool(a.grad.any()) for a in student.visual_adapters.maps if a.grad is not None)
    assert all(a.grad is not None for a in student.visual_adapters.maps)
