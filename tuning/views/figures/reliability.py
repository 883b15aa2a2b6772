"""Reliability diagram: accuracy over confidence, of the best trial and the zero-shot model."""

from __future__ import annotations

from matplotlib.figure import Figure

from tuning.runs.records import ZERO_SHOT
from tuning.views.figures.details import small_axes
from tuning.views.figures.frame import GREY, SOFT_INK, VERMILION
from tuning.views.predictions_report import DomainPredictions

_LARGEST_MARK = 200.0
"""Area of the mark of a bin that has all images, in square points."""


def reliability_figure(domain: DomainPredictions, best: str) -> Figure:
    """Accuracy of each bin over its mean confidence; the area of a mark is its share of images.

    Below the diagonal, the model is more confident than it is accurate.
    """
    drawn, (axes,) = small_axes(1, width=3.4)
    axes.plot([0, 100], [0, 100], color=SOFT_INK, linestyle=(0, (5, 4)), linewidth=0.9)
    for model, name, colour, marker in (
        (domain.zero_shot, ZERO_SHOT, GREY, "s"),
        (domain.best, best, VERMILION, "o"),
    ):
        number, accuracy, confidence = model.bins()
        axes.plot(100 * confidence, 100 * accuracy, color=colour, linewidth=1.2)
        axes.scatter(100 * confidence, 100 * accuracy, color=colour, marker=marker, zorder=3,
                     s=6 + _LARGEST_MARK * number / number.sum(), alpha=0.85,
                     label=f"{name}, ECE {model.ece:.1f}")  # fmt: skip
    axes.set_title(domain.domain, loc="left", fontsize=10, color=SOFT_INK)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return drawn
