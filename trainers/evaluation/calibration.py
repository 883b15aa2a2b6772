"""Calibration error of a classifier, before and after temperature scaling.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017 (arXiv
1706.04599): logits are divided by a temperature T > 0, which changes no prediction, and T minimises
the negative log-likelihood on validation images. A free search would need the logits of all images
of all workers in memory. So T comes from a fixed grid, with sums at each temperature computed in
the same pass as all other metrics.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from trainers.evaluation.metrics import ECE_BINS

TEMPERATURES: Final = tuple(2 ** (n / 8) for n in range(-24, 25))
"""G = 49 temperatures from 1/8 to 8, each 9 % larger than the previous one."""
UNSCALED: Final = TEMPERATURES.index(1.0)
"""Index of temperature 1."""


def calibration_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sums for NLL and calibration error at every temperature, float64.

    Args:
        logits: (B, K).
        labels: (B,) int64, columns of the logits.

    Returns:
        The sum of the negative log-likelihoods, (G,) in nats; and for each confidence bin of equal
        width the number of correct predictions minus the sum of their confidences, (G, 15).
    """
    below = logits - logits.amax(dim=-1, keepdim=True)
    # One temperature at a time: all at once would need 49 times the memory of the logits.
    scaled = torch.empty_like(below)
    sums = [torch.div(below, t, out=scaled).exp_().sum(dim=-1) for t in TEMPERATURES]
    partition = torch.stack(sums)  # (G, B)
    of_label = below.gather(1, labels[:, None]).T / below.new_tensor(TEMPERATURES)[:, None]
    nll = (partition.log() - of_label).double().sum(dim=1)
    confidence = partition.reciprocal()
    bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    correct = (logits.argmax(dim=-1) == labels).double()
    gaps = nll.new_zeros(len(TEMPERATURES), ECE_BINS)
    return nll, gaps.scatter_add_(1, bins, correct - confidence.double())


def calibration_error(gaps: Tensor, number: float) -> float:
    """ECE in percent: the mean over images of their bin's |accuracy - confidence|.

    `gaps` (15,) are those of `calibration_sums` at one temperature, `number` is that of images.
    """
    return 100 * float(gaps.abs().sum()) / number


def best_temperature(nll: Tensor) -> float:
    """The temperature of least NLL, from the sums (G,); 1 if no sum is finite."""
    if not bool(nll.isfinite().any()):
        return 1.0
    return TEMPERATURES[int(nll.nan_to_num(nan=math.inf).argmin())]


def temperature_index(temperature: float) -> int:
    """Index of the temperature on the grid that is nearest."""
    return min(range(len(TEMPERATURES)), key=lambda n: abs(TEMPERATURES[n] - temperature))
