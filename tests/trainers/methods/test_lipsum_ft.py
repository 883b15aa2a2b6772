"""The loss of Lipsum-FT against the formula, written out in float64 with explicit sums."""

from collections import Counter
from itertools import combinations
from math import cos, pi

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from tests.trainers.methods.by_hand import at, cross_entropy, scored, unit_rows
from trainers.errors import ConfigError
from trainers.methods import lipsum_ft
from trainers.methods.base import Batch
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.models.config import ModelConfig
from trainers.texts.random_texts import Vocabulary, random_texts, read_texts

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
        assert self.now.grad is not None
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


def encoded(zero_shot, tokens):
    """(M, D) in float64, by open_clip's own pass over whole contexts."""
    padded = functional.pad(tokens, (0, 24 - tokens.shape[1]))
    features = zero_shot.clip.encode_text(padded, normalize=True)
    return features.double().numpy()


def random_features(zero_shot, count, step):
    return encoded(zero_shot, random_texts(CLIP_WORDS, count, 8, seed=0, step=step))


def test_random_texts_change_each_step_and_fixed_ones_do_not(moved):
    first, fifth = (random_features(moved.zero_shot, 6, step) for step in (0, 5))
    (at_first, gradient), (at_fifth, _) = moved.by_hand(first), moved.by_hand(fifth)
    assert abs(at_first - at_fifth) > 0.01 * at_first
    fresh = LipsumFineTuning(text_count=6)
    fixed = LipsumFineTuning(text_count=6, text_source="fixed")
    assert [moved.reg(fresh, n) for n in (0, 5)] == pytest.approx([at_first, at_fifth], rel=1e-5)
    assert [moved.reg(fixed, n) for n in (0, 5)] == pytest.approx([at_first, at_first], rel=1e-5)
    for method in (fresh, fixed):
        np.testing.assert_allclose(moved.gradient(method), gradient, rtol=1e-4, atol=1e-5)


def test_a_second_moment_gives_the_energy_gap_of_its_texts(moved, monkeypatch):
    monkeypatch.setattr(lipsum_ft, "TEXTS_OF_MOMENT", 2048)
    texts = np.concatenate([random_features(moved.zero_shot, 1024, part) for part in (0, 1)])
    expected, gradient = moved.by_hand(texts)
    method = LipsumFineTuning(text_source="second_moment")
    assert [moved.reg(method, n) for n in (0, 7)] == pytest.approx(2 * [expected], rel=1e-5)
    np.testing.assert_allclose(moved.gradient(method), gradient, rtol=1e-4, atol=1e-5)


def test_isotropic_texts_are_the_distillation_of_features(moved):
    method, s = LipsumFineTuning(text_source="isotropic"), moved.zero_shot.logit_scale
    width = moved.change.shape[1]
    distances = [sum(v * v for v in change) for change in moved.change]
    expected = s**2 / (2 * width) * sum(distances) / len(distances)
    assert moved.reg(method, 3) == pytest.approx(expected, rel=1e-5)
    gradient = s**2 / (width * len(distances)) * moved.change
    np.testing.assert_allclose(moved.gradient(method), gradient, rtol=1e-4, atol=1e-5)


LINES = ("cat", "a dog", "two fish", "rain", "an old tree by the sea", "red", "7 x 7")


def drawn(moved, method, step, count):
    """The lines, all different, whose sums alone are this step's regulariser."""
    texts = encoded(moved.zero_shot, moved.zero_shot.tokenize(LINES))
    found, reg = [], moved.reg(method, step)
    for lines in combinations(range(len(LINES)), count):
        if moved.by_hand(texts[list(lines)])[0] == pytest.approx(reg, rel=1e-5):
            found.append(lines)
    (lines,) = found
    return lines


def test_each_step_draws_different_lines_of_a_file(moved, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(LINES) + "\n", encoding="utf-8")
    method = LipsumFineTuning(text_source="file", texts_file=str(file), text_count=3)
    by_step = [drawn(moved, method, step, 3) for step in range(42)]
    times = Counter(line for lines in by_step for line in lines)
    assert times.keys() == set(range(len(LINES)))
    assert all(9 < number < 27 for number in times.values())  # of 18 on average
    assert [drawn(moved, method, step, 3) for step in (0, 1)] == by_step[:2]
    more_than_there_are = method.model_copy(update={"text_count": 80})
    assert drawn(moved, more_than_there_are, 0, len(LINES)) == tuple(range(len(LINES)))


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("constant", [0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.4, 0.8 / 10]),
        ("cosine", [0.8, 0.4, 0.4 * (1 + cos(0.9 * pi))]),
    ],
)
def test_the_weight_follows_its_schedule(schedule, weights, moved):
    method = LipsumFineTuning(reg_weight=0.8, reg_schedule=schedule, text_source="isotropic")
    task = cross_entropy(moved.logits, LABELS)
    for number, weight in zip((0, 5, 9), weights, strict=True):
        loss = moved.loss(method, number, steps=10)
        assert loss.reg_weight == pytest.approx(weight, rel=1e-12)
        expected = task + weight * loss.reg.item()
        assert loss.total.item() == pytest.approx(expected, rel=1e-6)


def test_blank_lines_and_white_space_are_no_texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n  a cat \r\n\n\t\nein Bär\n\n", encoding="utf-8")
    assert read_texts(file) == ["a cat", "ein Bär"]


@pytest.mark.parametrize("content", [b" \n\n", b"\xff\xfe", None])
def test_a_file_without_texts_is_refused_by_name(content, tmp_path):
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"texts_file = .*texts\.txt'"):
        read_texts(file)
