"""The loss of Lipsum-FT against the formula, written out in float64 with explicit sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from trainers.errors import ConfigError
from trainers.methods import FineTuning, LipsumFineTuning, check_method_fits
from trainers.methods.lipsum import energy_gap
from trainers.models import ModelConfig
from trainers.random_texts import effective_rank, random_texts, second_moment

B, D, M, S = 5, 7, 4, 100.0


def unit_rows(rng: np.random.Generator, rows: int) -> np.ndarray:
    x = rng.standard_normal((rows, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, D)), unit_rows(rng, B), unit_rows(rng, M)


def reference(raw: np.ndarray, f0: np.ndarray, texts: np.ndarray) -> tuple[float, np.ndarray]:
    """The regulariser and its gradient in the unnormalised features, by loops over the formula."""
    total, gradient = 0.0, np.zeros_like(raw)
    for b in range(B):
        norm = np.sqrt(sum(v * v for v in raw[b]))
        f = raw[b] / norm
        for m in range(M):
            gap = S * float(np.dot(f, texts[m])) - S * float(np.dot(f0[b], texts[m]))
            total += gap**2 / (2 * M) / B
            # d<f, t>/d raw, through the normalisation, is (t - f <f, t>) / |raw|.
            gradient[b] += gap / M / B * S * (texts[m] - f * np.dot(f, texts[m])) / norm
    return total, gradient


def test_loss_and_gradient_equal_the_formula(
    features: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    raw, f0, texts = features
    expected, expected_gradient = reference(raw, f0, texts)
    x = torch.tensor(raw, requires_grad=True)
    loss = energy_gap(functional.normalize(x, dim=-1), torch.tensor(f0), torch.tensor(texts), S)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), expected_gradient, rtol=1e-10, atol=1e-10)


def test_loss_is_the_quadratic_form_of_the_second_moment(
    features: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    raw, f0, texts = features
    f = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    moment = texts.T @ texts / M
    expected = np.mean([S**2 / 2 * (a - b) @ moment @ (a - b) for a, b in zip(f, f0, strict=True)])
    loss = energy_gap(torch.tensor(f), torch.tensor(f0), torch.tensor(texts), S)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_loss_is_zero_where_nothing_moved(
    features: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, f0, texts = (torch.tensor(x) for x in features)
    assert energy_gap(f0, f0, texts, S).item() == 0


def test_random_texts_have_start_and_end_and_ordinary_tokens_between() -> None:
    tokens = random_texts(2046, 80, 8, seed=3, step=11)
    assert tokens.shape == (80, 10)
    assert (tokens[:, 0] == 2046).all()
    assert (tokens[:, -1] == 2047).all()
    assert tokens[:, 1:-1].max() < 2046
    assert len(tokens[:, 1:-1].unique()) > 500  # of 640 draws: spread over the vocabulary


def test_random_texts_are_a_function_of_seed_and_step() -> None:
    first = random_texts(2046, 4, 8, seed=3, step=11)
    assert torch.equal(first, random_texts(2046, 4, 8, seed=3, step=11))
    assert not torch.equal(first, random_texts(2046, 4, 8, seed=3, step=12))
    assert not torch.equal(first, random_texts(2046, 4, 8, seed=4, step=11))


def test_effective_rank_counts_the_directions() -> None:
    def rank(text_features: torch.Tensor) -> float:
        return effective_rank(second_moment(text_features))

    assert rank(torch.ones(9, 5) / 5**0.5) == pytest.approx(1)
    assert rank(torch.eye(6)) == pytest.approx(6)
    two_of_three = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert rank(two_of_three) == pytest.approx(2)


def test_a_text_that_the_context_cannot_hold_is_refused() -> None:
    check_method_fits(LipsumFineTuning(text_length=30), ModelConfig())
    with pytest.raises(ConfigError, match=r"text_length = 31.*at most 30"):
        check_method_fits(LipsumFineTuning(text_length=31), ModelConfig())
    coca = ModelConfig(name="coca_ViT-B-32", pretrained="random")
    with pytest.raises(ConfigError, match="context holds 76"):
        check_method_fits(LipsumFineTuning(text_length=75), coca)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32", "ViT-L-14-CLIPA"])
def test_a_model_without_clips_tokens_is_refused_and_told_what_would_do(name: str) -> None:
    model = ModelConfig(name=name, pretrained="random")
    with pytest.raises(ConfigError) as caught:
        check_method_fits(LipsumFineTuning(), model)
    message = str(caught.value)
    assert f"method.name = 'lipsum_ft', model.name = '{name}'" in message
    assert "write method.name = 'ft', or name a model with CLIP's tokenizer" in message
    assert "\n" not in message
    check_method_fits(FineTuning(), model)
