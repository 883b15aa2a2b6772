"""CAR-FT's divergence against sums over contexts, and the contexts against open_clip's texts."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import (
    assert_gradient,
    at,
    cross_entropy,
    divergence,
    scored,
    unit_rows,
)
from trainers.methods.base import Batch
from trainers.methods.car_ft import ContextAwareFineTuning
from trainers.models import text_head as heads
from trainers.models.clip import load_clip, load_tokenizer
from trainers.models.config import ModelConfig
from trainers.texts.prompts import Prompts, named_templates

LABELS = [0, 2, 1, 1]


def contexts_by_hand(prompts):
    """(T, D) in float64: of whole contexts of tokens, template by template."""
    clip, tokenize = cast(Any, load_clip(ModelConfig())), load_tokenizer(ModelConfig())
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


def test_loss_and_its_gradient_equal_the_sums(zero_shot):
    rng = np.random.default_rng(0)
    f0, f, contexts = unit_rows(rng, 4, 5), unit_rows(rng, 4, 5), unit_rows(rng, 6, 5)
    scores, s = rng.standard_normal((4, 3)), 7.0
    model = replace(zero_shot, contexts=torch.tensor(contexts), logit_scale=s)
    x = torch.tensor(f, requires_grad=True)
    student = scored(torch.tensor(scores), x)
    batch = Batch(torch.tensor(LABELS), student, scored(torch.zeros(4, 3), torch.tensor(f0)))
    loss = ContextAwareFineTuning(reg_weight=0.4).loss(batch, at(model, 1))
    loss.total.backward()

    def by_hand(features):
        return divergence(s * f0 @ contexts.T, s * features @ contexts.T)

    # What the zero-shot model sees weighs the contexts, not what the student does.
    assert abs(by_hand(f) - divergence(s * f @ contexts.T, s * f0 @ contexts.T)) > 0.1
    assert loss.reg.item() == pytest.approx(by_hand(f), rel=1e-12)
    total = cross_entropy(scores, LABELS) + 0.4 * by_hand(f)
    assert loss.total.item() == pytest.approx(total, rel=1e-12)
    assert_gradient(x, lambda features: 0.4 * by_hand(features), f)


def test_a_run_uses_zero_shot_contexts_and_scale(trial):
    taken = by_open_clip.take_step(trial, {"name": "car_ft", "reg_weight": 0.4})
    contexts = contexts_by_hand(taken.run.zero_shot.prompts)
    assert len(contexts) == 3
    before, now = (
        by_open_clip.scale() * by_open_clip.features(taken.images, weights) @ contexts.T
        for weights in (None, taken.weights)
    )
    by_hand = divergence(before, now)
    assert taken.reg == pytest.approx(by_hand, rel=1e-3)
    assert taken.loss == pytest.approx(taken.task + 0.4 * by_hand, rel=1e-4)
