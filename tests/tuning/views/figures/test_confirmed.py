from dataclasses import replace

import numpy as np
import pytest

from tests.tuning.confirmation.test_report import confirmation
from tuning.views.figures.confirmed import confirmed_figure


def test_every_seed_and_the_interval_of_each_mean_are_drawn():
    drawn = confirmed_figure(confirmation(rules=("id_val",)))
    assert drawn is not None
    axes = drawn[0].axes[0]
    points = [found.get_offsets().tolist() for found in axes.collections if len(found.get_paths())]
    seeds = [[80, 60], [82, 62]], [[84, 64], [86, 66]]
    assert [found for found in points if len(found) == 2] == list(seeds)
    assert [[78.0, 58.0]] in points  # zero-shot
    means = [bars.lines[0].get_xydata().tolist() for bars in axes.containers]
    assert means == [np.mean(found, 0, keepdims=True).tolist() for found in seeds]
    for (mean,), bars in zip(means, axes.containers, strict=True):
        ends = [line.get_segments()[0] for line in bars.lines[2]]
        # 12.706 * sqrt(2) / sqrt(2) to either side.
        for axis, end in enumerate(ends):
            assert end[:, axis] == pytest.approx([mean[axis] - 12.706, mean[axis] + 12.706], 1e-4)
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["FT, not tuned\n(lr = 1e-05)", "trial-004 (ft)"]


def test_results_without_ood_accuracy_have_no_figure():
    found = confirmation()
    id_only = {
        key: replace(one, curve=({"id_test/acc": 80.0},)) for key, one in found.results.items()
    }
    assert confirmed_figure(replace(found, results=id_only)) is None
