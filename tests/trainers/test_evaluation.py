from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.config import DataConfig
from trainers.evaluation import ECE_BINS, _ratios, _sums, metric_names, summarise


def by_hand(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    correct = p.argmax(axis=1) == labels
    confidence = p.max(axis=1)
    ece = 0.0
    for low in np.arange(ECE_BINS) / ECE_BINS:
        inside = (confidence >= low) & (confidence < low + 1 / ECE_BINS)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    nll = -np.log(p[np.arange(len(labels)), labels]).mean()
    return {"acc": 100 * correct.mean(), "nll": nll, "ece": 100 * ece, "count": len(labels)}


@pytest.mark.parametrize("shares", [[60], [13, 47]])
def test_figures_equal_those_by_hand_however_the_pictures_are_shared(shares: list[int]) -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((60, 6)) * 3, rng.integers(6, size=60)
    sums = sum(
        _sums(x, y)
        for x, y in zip(
            torch.tensor(logits).split(shares), torch.tensor(labels).split(shares), strict=True
        )
    )
    assert isinstance(sums, torch.Tensor)
    assert _ratios(sums) == pytest.approx(by_hand(logits, labels), rel=1e-6)


def test_names_say_domain_and_split_and_means_are_over_domains() -> None:
    data = DataConfig(id_domain="real", ood_domains=("sketch", "clipart"))
    of = {"nll": 1.0, "ece": 1.0}
    flat = summarise(
        {"real": of | {"acc": 80.0}, "sketch": of | {"acc": 20.0}, "clipart": of | {"acc": 60.0}},
        data,
        "val",
    )
    assert flat["id_val/acc"] == 80
    assert flat["ood_val/mean_acc"] == 40
    assert flat["val/mean_acc"] == 60
    assert set(flat) == set(metric_names(data))
    assert "ood_test/sketch/nll" in metric_names(data, "test")
