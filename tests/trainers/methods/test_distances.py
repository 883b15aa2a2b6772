"""KD's, CAR-FT's and L2-SP's distances from zero-shot against sums, and what they are taken of."""

import numpy as np
import pytest
import torch

from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import cross_entropy, divergence
from trainers.models import text_head as heads
from trainers.models.clip import load_clip, load_tokenizer
from trainers.models.config import ModelConfig
from trainers.texts import Prompts, named_templates


def test_both_models_use_their_own_head_and_one_scale(trial):
    taken = by_open_clip.take_step(trial, {"name": "kd", "reg_weight": 0.7})
    head, s = taken.training.setup.zero_shot.head.double().numpy(), by_open_clip.scale()
    before = s * by_open_clip.features(taken.images) @ head.T
    now = by_open_clip.logits(taken.images, taken.weights)
    by_hand = divergence(before, now)
    assert taken.reg == pytest.approx(by_hand, rel=1e-4)
    assert taken.task == pytest.approx(cross_entropy(now, taken.labels), rel=1e-4)
    assert taken.loss == pytest.approx(taken.task + 0.7 * by_hand, rel=1e-4)
    for other in (divergence(before / s, now / s), divergence(before, now / s)):
        assert abs(other - by_hand) > 0.01 * by_hand


def test_a_run_penalises_all_parameters_from_zero_shot(trial):
    taken = by_open_clip.take_step(trial, {"name": "l2_sp", "reg_weight": 0.3})
    zero_shot = taken.training.setup.zero_shot
    initial = {"head": zero_shot.head}
    initial |= {f"visual.{name}": p.detach() for name, p in zero_shot.visual.named_parameters()}
    squares = {
        name: float((taken.weights[name].double() - before.double()).square().sum())
        for name, before in initial.items()
    }
    assert squares["head"] > 1e-2
    assert taken.reg == pytest.approx(sum(squares.values()), rel=1e-5)
    task = cross_entropy(by_open_clip.logits(taken.images, taken.weights), taken.labels)
    assert taken.loss == pytest.approx(task + 0.3 * sum(squares.values()), rel=1e-5)


def contexts_by_hand(prompts):
    """(T, D) in float64: of whole contexts of tokens, template by template."""
    clip, tokenize = load_clip(ModelConfig()), load_tokenizer(ModelConfig())
    clip, rows = clip.double(), []
    for template in prompts.templates:
        texts = [template.replace("{}", name) for name in prompts.names]
        with torch.no_grad():
            encoded = clip.encode_text(tokenize(texts), normalize=True).numpy()
        mean = sum(encoded) / len(encoded)
        rows.append(mean / np.sqrt(sum(mean**2)))
    return np.array(rows)


def test_a_context_is_the_mean_of_its_texts_over_classes(monkeypatch):
    monkeypatch.setattr(heads, "TEXTS_A_BATCH", 14)  # two classes at once, then the third
    prompts = Prompts(("cat", "a much longer name", "bus"), named_templates("simple_imagenet"))
    clip, tokenizer = load_clip(ModelConfig()), load_tokenizer(ModelConfig())
    found = heads.zero_shot_heads(clip, tokenizer, prompts).contexts.numpy()
    assert len(found) == 7
    np.testing.assert_allclose(found, contexts_by_hand(prompts), atol=1e-6)


def test_a_run_uses_zero_shot_contexts_and_scale(trial):
    taken = by_open_clip.take_step(trial, {"name": "car_ft", "reg_weight": 0.4})
    contexts = contexts_by_hand(taken.training.setup.zero_shot.prompts)
    assert len(contexts) == 3
    before, now = (
        by_open_clip.scale() * by_open_clip.features(taken.images, weights) @ contexts.T
        for weights in (None, taken.weights)
    )
    by_hand = divergence(before, now)
    assert taken.reg == pytest.approx(by_hand, rel=1e-3)
    assert taken.loss == pytest.approx(taken.task + 0.4 * by_hand, rel=1e-4)
