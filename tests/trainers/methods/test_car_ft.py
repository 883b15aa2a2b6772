"""CAR-FT's divergence against sums over contexts, and the contexts against open_clip's texts."""

import numpy as np
import pytest
import torch

from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import divergence
from trainers.models import text_head as heads
from trainers.models.clip import load_clip, load_tokenizer
from trainers.models.config import ModelConfig
from trainers.texts.prompts import Prompts, named_templates


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
    contexts = contexts_by_hand(taken.run.zero_shot.prompts)
    assert len(contexts) == 3
    before, now = (
        by_open_clip.scale() * by_open_clip.features(taken.images, weights) @ contexts.T
        for weights in (None, taken.weights)
    )
    by_hand = divergence(before, now)
    assert taken.reg == pytest.approx(by_hand, rel=1e-3)
    assert taken.loss == pytest.approx(taken.task + 0.4 * by_hand, rel=1e-4)
