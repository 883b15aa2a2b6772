"""The loss of Lipsum-FT against the formula, written out in float64 with explicit sums."""

from math import cos, pi

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from tests.trainers.methods.by_hand import at, cross_entropy, scored, unit_rows
from trainers.errors import ConfigError
from trainers.methods.base import Batch
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.models.config import ModelConfig
from trainers.texts import Vocabulary, random_texts

CLIP_WORDS = Vocabulary(open_clip.SimpleTokenizer(context_length=24))


def test_a_text_that_the_context_cannot_hold_is_refused():
    LipsumFineTuning(text_length=30).check(ModelConfig())
    with pytest.raises(ConfigError, match=r"text_length = 31.*at most 30"):
        LipsumFineTuning(text_length=31).check(ModelConfig())


LABELS = [0, 2, 1, 2]


class Moved:
    """Images whose features are no longer those of the zero-shot model."""

    def __init__(self, zero_shot):
        rng, width = np.random.default_rng(5), zero_shot.head.shape[1]
        self.zero_shot, self.logits = zero_shot, rng.standard_normal((4, 3))
        f0, f = unit_rows(rng, 4, width), unit_rows(rng, 4, width)
        self.before = torch.tensor(f0, dtype=torch.float32)
        self.now = torch.tensor(f, dtype=torch.float32, requires_grad=True)
        self.change = (self.now.detach().double() - self.before.double()).numpy()

    def loss(self, method, number, steps=10):
        student = scored(torch.tensor(self.logits), self.now)
        teacher = scored(torch.zeros(4, 3), self.before)
        batch = Batch(torch.tensor(LABELS), student, zero_shot=teacher)
        return method.loss(batch, at(self.zero_shot, number, steps=steps))

    def reg(self, method, number):
        return self.loss(method, number).reg.item()

    def gradient(self, method):
        self.now.grad = None
        self.loss(method, 0).reg.backward()
        return self.now.grad.numpy()

    def by_hand(self, texts):
        """The regulariser on texts (M, D), and its gradient in the features."""
        s, total, gradient = self.zero_shot.logit_scale, 0.0, np.zeros_like(self.change)
        for b, change in enumerate(self.change):
            for text in texts:
                gap = s * float(np.dot(change, text))
                total += gap**2 / (2 * len(texts) * len(self.change))
                gradient[b] += gap * s * text / (len(texts) * len(self.change))
        return total, gradient


@pytest.fixture
def moved(zero_shot):
    return Moved(zero_shot)


def random_features(zero_shot, step):
    """(6, D) in float64 of the texts of a step, by open_clip's own pass over whole contexts."""
    tokens = random_texts(CLIP_WORDS, 6, 8, seed=0, step=step)
    padded = functional.pad(tokens, (0, 24 - tokens.shape[1]))
    return zero_shot.clip.encode_text(padded, normalize=True).double().numpy()


def test_random_texts_change_each_step(moved):
    first, fifth = (random_features(moved.zero_shot, step) for step in (0, 5))
    (at_first, gradient), (at_fifth, _) = moved.by_hand(first), moved.by_hand(fifth)
    assert abs(at_first - at_fifth) > 0.01 * at_first
    method = LipsumFineTuning(text_count=6)
    assert [moved.reg(method, n) for n in (0, 5)] == pytest.approx([at_first, at_fifth], rel=1e-5)
    np.testing.assert_allclose(moved.gradient(method), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("constant", [0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.4, 0.8 / 10]),
        ("cosine", [0.8, 0.4, 0.4 * (1 + cos(0.9 * pi))]),
    ],
)
def test_the_weight_follows_its_schedule(schedule, weights, moved):
    method = LipsumFineTuning(reg_weight=0.8, reg_schedule=schedule)
    task = cross_entropy(moved.logits, LABELS)
    for number, weight in zip((0, 5, 9), weights, strict=True):
        loss = moved.loss(method, number, steps=10)
        assert loss.reg_weight == pytest.approx(weight, rel=1e-12)
        expected = task + weight * loss.reg.item()
        assert loss.total.item() == pytest.approx(expected, rel=1e-6)
