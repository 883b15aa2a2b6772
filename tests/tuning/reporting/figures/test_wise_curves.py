"""WiSE-FT's curves in the figure and in the table of trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from PIL import Image
from typer.testing import CliRunner

from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from tuning.cli import app
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


def test_the_legend_labels_plain_fine_tuning_as_not_tuned(
    search: SearchRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []

    def keep_labels(axes: Axes, handles: Sequence[Artist]) -> None:
        labels.extend(str(handle.get_label()) for handle in handles)

    monkeypatch.setattr("tuning.reporting.figures.wise_curves.legend_beside", keep_labels)
    records = [with_curve(fakes.reference()), with_curve(fakes.trial(0))]
    draw(search, records)
    assert "FT, not tuned\n(lr = 1e-05)" in labels


def has_colour(path: Path, colour: tuple[int, int, int]) -> bool:
    with Image.open(path) as image:
        return bool((np.asarray(image.convert("RGB")) == colour).all(axis=-1).any())


def test_report_draws_the_curves_of_a_run_folder(images_root: Path, tmp_path: Path) -> None:
    records = [fakes.reference(), with_curve(fakes.trial(0)), with_curve(fakes.trial(1, 84.0))]
    run = write_run(tmp_path / "mine", search_file(images_root), records)
    shown = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert (run / "report" / "wise_curves.png").stat().st_size > 10_000
    rows = pq.read_table(run / "trials.parquet").to_pylist()
    assert rows[2]["wise/0.1/id_val/acc"] == records[1].metrics["wise/0.1/id_val/acc"]
