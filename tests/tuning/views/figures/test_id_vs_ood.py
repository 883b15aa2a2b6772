import math

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tuning.confirmation.results import results_path
from tuning.views.figures.id_vs_ood import draw, frontier

SEEDS = {
    "ft": [(88.0, 57.0), (89.0, 55.0)],
    "trial-000": [(84.0, 61.0), (85.5, 63.0), (84.5, 62.5)],
}
"""ID and mean OOD validation accuracy of each fresh seed."""


def confirmed(folder, seeds):
    """The figure of a search with these results of `confirm`, whose test accuracies are lower."""
    results = {
        (name, 1000 + seed): {
            "id_val/acc": id_acc,
            "ood_val/mean_acc": ood_acc,
            "id_test/acc": id_acc - 9,
            "ood_test/mean_acc": ood_acc - 9,
        }
        for name, pairs in seeds.items()
        for seed, (id_acc, ood_acc) in enumerate(pairs)
    }
    write_results(folder, results)
    return draw(fakes.search_record(folder), [fakes.reference(), fakes.trial(0), fakes.trial(1)])


def crosses(figure):
    """The points of lines with two parts."""
    points = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines]
    return [found for found in points if np.isnan(found).any()]


def test_fresh_seeds_are_a_cross_of_standard_deviations_at_their_mean(tmp_path):
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


def test_without_validation_accuracies_of_fresh_seeds_there_is_no_cross(tmp_path):
    figure, note = confirmed(tmp_path, {"trial-000": [(math.nan, math.nan)] * 2})
    assert not crosses(figure)
    assert "fresh seeds" not in note
    results_path(tmp_path).write_text("nonsense\n")
    figure, _ = draw(fakes.search_record(tmp_path), [fakes.trial(0)])
    assert not crosses(figure)


def test_no_point_of_any_line_is_better_than_the_frontier_in_both():
    rng = np.random.default_rng(0)
    trials, points = [], []
    for number in range(8):
        result, *line = rng.uniform(50, 90, size=(4, 2)).tolist()
        measured = {
            f"line/{a}/{name}": value
            for a, point in zip((0, 0.5, 1), line, strict=True)
            for name, value in zip(("id_val/acc", "ood_val/mean_acc"), point, strict=True)
        }
        trials.append(fakes.trial(number, curve=(fakes.report(240, *result, **measured),)))
        points += [result, *line]
    pruned = fakes.trial(8, curve=(fakes.report(40, 99.0, 99.0),), outcome="pruned")
    best = [p for p in points if not any(q[0] > p[0] and q[1] > p[1] for q in points)]
    assert [list(point) for point in frontier([*trials, pruned])] == sorted(best)
