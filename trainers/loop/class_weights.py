"""Weights of classes in the cross-entropy, for training images that are not spread evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainers.errors import ConfigError, suggestion


def class_weights(
    given: Literal["auto"] | Mapping[str, float] | None,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> Tensor | None:
    """The (K,) weights, whose mean over the training images is 1; None without weights.

    The loss of an image times the weight of its class can therefore be averaged over any part of a
    batch, and the learning rate keeps its meaning.

    Args:
        given: `auto` is the inverse of the number of images; of names, others have the weight 1.
        labels: (N,) of the training images.

    Raises:
        ConfigError: no class has such a name.
    """
    if given is None:
        return None
    counts = np.bincount(labels, minlength=len(class_names))
    if given == "auto":
        weights = 1 / np.maximum(counts, 1)
    else:
        check_names(given, class_names)
        weights = np.array([given.get(name, 1.0) for name in class_names])
    return torch.from_numpy(weights * (counts.sum() / (weights * counts).sum())).float()


def check_names(given: Mapping[str, float], class_names: Sequence[str]) -> None:
    """Raise a ConfigError for a name that no class has."""
    for name in given.keys() - {*class_names}:
        hint = suggestion(name, class_names)
        raise ConfigError("no such class", key="class_weights", value=name, hint=hint)
