from pathlib import Path

import pytest
from matplotlib import image

from tests.tuning import fakes
from tuning.views.lines import frontier, line_of
from tuning.views.static import main_figure, write_main_figure

SEARCH = fakes.search_record(Path("run"))


def lined(number, result, points):
    metrics = {
        f"line/{a:g}/{name}": value
        for a, both in points.items()
        for name, value in zip(("id_val/acc", "ood_val/mean_acc"), both, strict=True)
    }
    return fakes.trial(number, curve=(fakes.report(fakes.TOTAL_STEPS, *result, **metrics),))


def test_the_line_of_a_trial_has_its_measured_points_in_order():
    trial = lined(1, (86.0, 63.0), {1.0: (88.0, 58.0), 0.0: (82.4, 61.0), 0.5: (86.0, 63.0)})
    assert line_of(trial) == [(0.0, 82.4, 61.0), (0.5, 86.0, 63.0), (1.0, 88.0, 58.0)]
    assert line_of(fakes.trial(1)) == []


def test_nothing_on_the_frontier_is_beaten_in_both():
    trials = [
        lined(1, (86.0, 63.0), {0.5: (86.0, 63.0), 1.0: (88.0, 58.0)}),
        lined(2, (85.0, 64.0), {0.5: (84.0, 63.5), 1.0: (87.0, 57.0)}),
        fakes.trial(3, 99.0, 99.0, outcome="pruned"),
    ]
    assert frontier(trials) == [(85.0, 64.0), (86.0, 63.0)]  # points of lines are of a sample


def test_the_main_figure_is_a_picture_and_a_document(tmp_path):
    png, pdf = write_main_figure(SEARCH, fakes.finished_search(), tmp_path)
    assert image.imread(png).std() > 0.05
    assert pdf.read_bytes().startswith(b"%PDF")
    before = png.read_bytes(), pdf.read_bytes()
    write_main_figure(SEARCH, fakes.finished_search(), tmp_path)
    assert (png.read_bytes(), pdf.read_bytes()) == before


@pytest.mark.parametrize(
    "records", [[], [fakes.reference()], [fakes.trial(1)], fakes.compared_methods()]
)
def test_it_can_be_drawn_from_whatever_there_is(records):
    (axes, *_) = main_figure(SEARCH, records).axes
    assert axes.get_xlabel() == "ID accuracy on real, %"
