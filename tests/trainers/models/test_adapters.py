"""Merged adapters against adapters that stand in the network, as forward hooks."""

from contextlib import ExitStack, contextmanager
from itertools import cycle

import pytest
import torch
from torch import nn

from tests.trainers.tiny_models import random_model, student_of
from trainers.methods.r_adapter import ResidualAdapter
from trainers.models.adapters import GAIN, Adapter
from trainers.models.image import pooled_features
from trainers.models.student import TextTower
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts

PROMPTS = Prompts(("cat", "dog"), ("a {}.",))
TIMM_VIT = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}


def adapted(kind, folder):
    changes = {"vision_cfg": TIMM_VIT} if kind == "timm" else {}
    model = random_model(folder, kind, **changes)
    student = student_of(load_zero_shot(model, PROMPTS), ResidualAdapter())
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.trained.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return student


def adapters_of(encoder):
    """By the names of the attentions and MLPs after which they stand."""
    return {
        name.partition(".parametrizations")[0].rpartition(".")[0]: part
        for name, part in encoder.named_modules()
        if isinstance(part, Adapter)
    }


@contextmanager
def hooked(plain, adapters):
    """Within the block, ``x + scale g A x`` stands after every attention and every MLP."""
    with ExitStack() as stack:
        for name, adapter in adapters.items():
            change = adapter.scale * adapter.gain * adapter.map
            module = plain.get_submodule(name)

            def adapt(_, __, output, change=change):
                branch = output[0] if isinstance(output, tuple) else output
                adapted = branch + branch @ change.T
                return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

            stack.enter_context(module.register_forward_hook(adapt))
        yield


@pytest.mark.parametrize("kind", ["clip", "custom-text", "quick-gelu", "coca", "timm"])
def test_merged_adapters_say_what_adapters_in_the_network_say(kind, tmp_path):
    student = adapted(kind, tmp_path)
    size = 160 if kind == "timm" else 32
    images = torch.randn(3, 3, size, size)
    tokens = torch.randint(1, 49_000, (3, 24))
    tokens[:, -1] = 49_407
    zero_shot = student._zero_shot
    visual, text = zero_shot.visual, TextTower(zero_shot.clip)
    for encoder in (student.visual, student.text):
        for adapter, scale in zip(adapters_of(encoder).values(), cycle((1.25, 0, 1, 2))):
            adapter.scale.fill_(scale)
    with torch.no_grad():
        found = student(images, tokens[None])
        plain = pooled_features(visual, images)
        with hooked(visual, adapters_of(student.visual)):
            features = pooled_features(visual, images)
        with hooked(text, adapters_of(student.text)):
            text_features = text(tokens)
    normalize = nn.functional.normalize
    assert (normalize(features, dim=-1) - normalize(plain, dim=-1)).abs().max() > 1e-3
    torch.testing.assert_close(found.features, normalize(features, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text_features[0], text_features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "coca"])
def test_every_block_of_both_encoders_has_two_adapters(kind, tmp_path):
    student = adapted(kind, tmp_path)
    assert len(adapters_of(student.visual)) == len(adapters_of(student.text)) == 2 * 2
    outputs = student(torch.randn(2, 3, 32, 32), torch.randint(1, 49_407, (1, 2, 24)))
    (outputs.features.sum() + outputs.text_features.sum()).backward()
    for name, parameter in student.trained.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert {name.rpartition(".")[2] for name in student.trained} == {"map", "gain"}


def test_new_adapters_change_nothing_and_can_learn(tmp_path):
    zero_shot = load_zero_shot(random_model(tmp_path, "clip"), PROMPTS)
    student = student_of(zero_shot, ResidualAdapter())
    adapters = adapters_of(student.visual).values()
    assert [a.gain.item() for a in adapters] == pytest.approx([GAIN] * 4)
    images = torch.randn(3, 3, 32, 32)
    features = student(images).features
    torch.testing.assert_close(features, zero_shot.image_features(images), rtol=0, atol=1e-6)
    features.square().sum(dim=0)[0].backward()
    assert all(bool(a.map.grad.any()) for a in adapters)
