"""LoRA's changes against products in float64, in open_clip's own model, and on the line."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests.trainers.curves import changed, short
from tests.trainers.methods.by_open_clip import features, images_of
from tests.trainers.methods.conftest import PROMPTS
from tests.trainers.tiny_models import random_model, student_of
from trainers.checkpoints.format import WEIGHTS
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.loop.training import start
from trainers.methods.lora import LowRankFineTuning
from trainers.models.image import pooled_features
from trainers.models.zero_shot import load_zero_shot

METHOD = LowRankFineTuning()
LAYERS = {"attn.in_proj_weight": 3, "attn.out_proj.weight": 1, "mlp.c_fc.weight": 1,
          "mlp.c_proj.weight": 1}  # fmt: skip
"""Matrices of a block, and how many changes each of them has."""


@pytest.fixture
def config(trial):
    return short(trial, {"name": "lora", "rank": 2, "alpha": 6}, optim__lr=1e-2)


def test_merged_weights_are_those_of_the_equation(config):
    (report,) = fine_tune(config)
    student, plain = report.training.student, report.training.student.plain_state()
    assert len(student.trained) == 1 + 5 * 4 * 2
    for name, before in report.training.setup.zero_shot.visual.named_parameters():
        layer = name.partition("resblocks.")[2].partition(".")[2]
        found = plain[f"visual.{name}"]
        if layer not in LAYERS:
            assert torch.equal(found, before), name
            continue
        owner, _, tensor = name.rpartition(".")
        factors = f"visual.{owner}.parametrizations.{tensor}.0."
        up, down = (student.trained[factors + part].detach().double() for part in ("up", "down"))
        rows = np.split(before.double().numpy(), LAYERS[layer])
        by_hand = [
            w + 6 / 2 * u @ v for w, u, v in zip(rows, up.numpy(), down.numpy(), strict=True)
        ]
        np.testing.assert_allclose(found, np.concatenate(by_hand), rtol=0, atol=1e-6)
        assert np.linalg.matrix_rank(by_hand[0] - rows[0], tol=1e-5) == 2, name


def test_a_seed_has_its_own_start_which_is_the_zero_shot_model(config):
    one, other = (start(changed(config, seed=seed)) for seed in (0, 1))
    name = "visual.transformer.resblocks.0.mlp.c_fc.parametrizations.weight.0.down"
    assert torch.equal(start(config).initial[name], one.initial[name])
    assert not torch.equal(one.initial[name], other.initial[name])
    images, _ = images_of(config)
    zero_shot = one.setup.zero_shot.image_features(images)
    torch.testing.assert_close(one.student(images).features, zero_shot, rtol=0, atol=1e-6)


def test_a_point_of_the_line_is_one_of_merged_weights(config, tmp_path):
    kept = {}
    for line in ("off", 0.25):
        (report,) = fine_tune(changed(config, eval__line=line))
        report.save(tmp_path / str(line))
        kept[line] = load_file(tmp_path / str(line) / WEIGHTS)
    zero_shot = report.training.setup.zero_shot
    before = {f"visual.{name}": value for name, value in zero_shot.visual.state_dict().items()}
    before["head"] = zero_shot.head
    for name, at_quarter in kept[0.25].items():
        expected = 0.75 * before[name] + 0.25 * kept["off"][name]
        torch.testing.assert_close(at_quarter, expected, rtol=0, atol=1e-6, msg=name)
    images, _ = images_of(config)
    shown = features(images, kept["off"])
    found = functional.normalize(pooled_features(report.training.student.visual, images), dim=-1)
    np.testing.assert_allclose(found.detach(), shown, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "coca", "siglip", "roberta"])
def test_all_changes_of_a_transformer_get_gradients(kind, tmp_path):
    model = random_model(tmp_path, kind)
    METHOD.check(model)
    student = student_of(load_zero_shot(model, PROMPTS), METHOD)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    student(images).logits.exp().sum().backward()
    ups = [p.grad for name, p in student.trained.items() if name.endswith(".up")]
    assert len(ups) == 2 * len(LAYERS)
    assert all(bool((grad != 0).any()) for grad in ups)


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_an_encoder_of_convolutions_is_refused(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"method.name = 'lora': .*no blocks with linear layers"):
        METHOD.check(random_model(tmp_path, kind))
