"""WiSE-FT's curves in the figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tuning import fakes
from tuning.reporting.figures.frame import save_figure
from tuning.reporting.figures.wise_curves import draw, wise_curve
from tuning.reporting.html_report import write_report
from tuning.runs.records import SearchRecord, TrialRecord

ALPHAS = (0, 0.1, 0.5, 1)


def with_curve(record: TrialRecord, bend: float = 3.0) -> TrialRecord:
    """A trial that also reported its curve: a parabola above the straight line."""
    last = record.metrics
    swept = {}
    for alpha in ALPHAS:
        lift = bend * 4 * alpha * (1 - alpha)
        swept[f"wise/{alpha:g}/id_val/acc"] = 82.4 + alpha * (last["id_val/acc"] - 82.4)
        end = last["ood_val/mean_acc"]
        swept[f"wise/{alpha:g}/ood_val/mean_acc"] = 61 + alpha * (end - 61) + lift
    return replace(record, curve=(*record.curve[:-1], {**last, **swept}))


@pytest.fixture
def search(tmp_path: Path) -> SearchRecord:
    return fakes.search_record(tmp_path)


def test_a_curve_is_read_from_the_last_report_in_the_order_of_alpha() -> None:
    curve = wise_curve(with_curve(fakes.trial(0, 86.4, 61.0)))
    assert [alpha for alpha, _, _ in curve] == [0, 0.1, 0.5, 1]
    assert curve[2] == pytest.approx((0.5, 84.4, 64.0))
    assert wise_curve(fakes.trial(0)) == []
    broken = {"step": 240, "wise/0.5/id_val/acc": float("nan")}
    assert wise_curve(fakes.trial(0, curve=(broken,))) == []


def test_the_figure_highlights_the_best_curves(search: SearchRecord, tmp_path: Path) -> None:
    plain = fakes.finished_search()
    assert draw(search, plain) is None
    records = [with_curve(r) if r.outcome == "finished" else r for r in plain]
    write_report(search, records, tmp_path)
    path = tmp_path / "wise_curves.png"
    orange, grey = (0xD5, 0x5E, 0x00), (0xB9, 0xBE, 0xC6)
    assert has_colour(path, orange)
    assert has_colour(path, grey)  # of more than five
    drawn = draw(search, records[:4])
    assert drawn is not None
    alone = save_figure(*drawn, tmp_path / "alone.png")
    assert has_colour(alone, orange)
    assert not has_colour(alone, grey)


def test_the_legend_labels_plain_fine_tuning_as_not_tuned(search: SearchRecord) -> None:
    drawn = draw(search, [with_curve(fakes.reference()), with_curve(fakes.trial(0))])
    assert drawn is not None
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    assert "FT, not tuned\n(lr = 1e-05)" in [text.get_text() for text in legend.get_texts()]


def has_colour(path: Path, colour: tuple[int, int, int]) -> bool:
    with Image.open(path) as image:
        return bool((np.asarray(image.convert("RGB")) == colour).all(axis=-1).any())
