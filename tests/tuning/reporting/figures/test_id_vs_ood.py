from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.tuning import fakes
from tuning.confirmation.results import ResultsFile, TestResult, results_path
from tuning.reporting.figures.id_vs_ood import draw

SEEDS = {
    "ft": [(88.0, 57.0), (89.0, 55.0)],
    "trial-000": [(84.0, 61.0), (85.5, 63.0), (84.5, 62.5)],
}
"""ID and mean OOD validation accuracy of each fresh seed."""


def confirmed(folder: Path, seeds: dict[str, list[tuple[float, float]]]) -> tuple[Figure, str]:
    """The figure of a search with these results of `confirm`, whose test accuracies are lower."""
    with closing(ResultsFile(folder)) as file:
        for name, pairs in seeds.items():
            for seed, (id_acc, ood_acc) in enumerate(pairs):
                metrics = {"id_val/acc": id_acc, "ood_val/mean_acc": ood_acc}
                metrics |= {"id_test/acc": id_acc - 9, "ood_test/mean_acc": ood_acc - 9}
                file.append(TestResult(name, "trial", 1000 + seed, {}, (), metrics))
    return draw(fakes.search_record(folder), [fakes.reference(), fakes.trial(0), fakes.trial(1)])


def crosses(figure: Figure) -> list[np.ndarray]:
    """The points of lines with two parts."""
    points = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines]
    return [found for found in points if np.isnan(found).any()]


def test_fresh_seeds_are_a_cross_of_standard_deviations_at_their_mean(tmp_path: Path) -> None:
    unsure = {"trial-001": [(84.0, 60.0), (85.0, math.nan)]}  # one seed has no spread
    figure, note = confirmed(tmp_path, SEEDS | unsure)
    found = crosses(figure)
    assert len(found) == 2
    for (left, mean, right, _, low, high), pairs in zip(found, SEEDS.values(), strict=True):
        (x, y), (dx, dy) = np.mean(pairs, 0), np.std(pairs, 0, ddof=1)
        assert mean == pytest.approx([x, y])
        assert [*left, *right] == pytest.approx([x - dx, y, x + dx, y])
        assert [*low, *high] == pytest.approx([x, y - dy, x, y + dy])
    assert "mean and standard deviation of 2 to 3 fresh seeds" in note


def test_without_validation_accuracies_of_fresh_seeds_there_is_no_cross(tmp_path: Path) -> None:
    figure, note = confirmed(tmp_path, {"trial-000": [(math.nan, math.nan)] * 2})
    assert not crosses(figure)
    assert "fresh seeds" not in note
    results_path(tmp_path).write_text("nonsense\n")
    figure, _ = draw(fakes.search_record(tmp_path), [fakes.trial(0)])
    assert not crosses(figure)
