"""Which model to fine-tune: several models by zero-shot accuracy and by LogME.

LogME (You, Liu, Wang and Long, ICML 2021, arXiv 2102.11005) says how well a linear model on the
frozen features explains the labels. It is no accuracy: only the order counts, and only between
models on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table
from scipy.optimize import minimize_scalar

from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.evaluation.evaluate import image_features
from trainers.loop.state import id_classes, open_images
from tuning.views.result_table import borderless_table
from tuning.zero_shot.evaluate import Row, measure, open_model

SAMPLE = 5000
"""Training images of the ID domain that LogME sees: every so-manyth."""


@dataclass(frozen=True)
class Ranked:
    """One model."""

    name: str
    rows: Sequence[Row]
    """Its domains, the ID domain first."""
    log_me: float

    @property
    def acc(self) -> float:
        """Mean of ID and mean OOD accuracy, in percent; ID accuracy alone without OOD domains."""
        first, *others = (row.acc for row in self.rows)
        return (first + float(np.mean(others))) / 2 if others else first


def rank(
    configs: Sequence[tuple[str, TrialConfig]],
    split: str = "val",
    began: Callable[[str], None] = lambda name: None,
) -> list[Ranked]:
    """The models of several configurations, best first by zero-shot accuracy.

    Raises:
        ConfigError: they have other data, or see `measure`.
    """
    (first, reference), *others = configs
    for name, config in others:
        if (config.data.root, config.data.domains) != (reference.data.root, reference.data.domains):
            raise ConfigError(f"its images are not those of {first}", source=name)
    found = []
    for name, config in configs:
        began(name)
        found.append(Ranked(name, measure(config, split), log_me(*train_features(config))))
    return sorted(found, key=lambda ranked: -ranked.acc)


def train_features(config: TrialConfig) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) of a sample of the training images, and their labels (n,)."""
    data = config.data
    _, encode, batches = open_model(config, id_classes(data))
    images = open_images(data, data.id_domain, "train").sampled(SAMPLE)
    features = image_features(encode, images, batches)
    return features.numpy(), images.labels[list(images.eval_rows)]


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the highest evidence, ``max_{a, b} log p(y) / n``, of a linear model.

    ``y ~ N(F w, I / b)`` with ``w ~ N(0, I / a)``; y is 1 for the images of a class and 0 for
    others. The best b of a ratio t = a / b is known, so that the ratio alone is searched.

    Args:
        features: F, (n, D).
        labels: (n,).
    """
    n = len(features)
    u, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    s, evidences = singular**2, []
    ratios = math.log(s[0]) + np.linspace(-20, 20, 81)
    for label in np.unique(labels):
        y = (labels == label).astype(np.float64)
        inside = (u.T @ y) ** 2  # squares of y along the features, which leave the rest of it
        outside = max(y @ y - inside.sum(), 0.0)

        def loss(ratio: float, inside: np.ndarray = inside, outside: float = outside) -> float:
            t = math.exp(ratio)
            b = n / ((inside * t / (s + t)).sum() + outside)
            return float(1 + math.log(2 * math.pi / b) + np.log1p(s / t).sum() / n) / 2

        start = min(ratios, key=loss)
        found = minimize_scalar(loss, bounds=(start - 0.5, start + 0.5), method="bounded")
        evidences.append(-found.fun)
    return float(np.mean(evidences))


def ranking_table(ranked: Sequence[Ranked]) -> Table:
    """One row per model."""
    table = borderless_table("", "ID acc, %", "mean OOD acc, %", "LogME")
    for one in ranked:
        first, *others = one.rows
        ood = f"{np.mean([row.acc for row in others]):.2f}" if others else ""
        acc = f"{first.acc:.2f} ± {first.error:.2f}"
        table.add_row(escape(one.name), acc, ood, f"{one.log_me:.4f}")
    return table
