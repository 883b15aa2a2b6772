import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs.conclusion import conclusion
from tuning.views.changed_images import Changed
from tuning.views.figures import CONTOUR_TRIALS, NEEDS_TWO, Plots, importance_lacks
from tuning.views.page import SCRIPT_FILE, write_page

SEARCH = fakes.search_record(Path("run"))


def scattered(number):
    """Trials whose ID accuracy follows the learning rate alone, and OOD accuracy the weight."""
    rng = np.random.default_rng(0)
    trials = []
    for index in range(number):
        weight, lr = 10 ** rng.uniform(-2, 2), 10 ** rng.uniform(-6, -3)
        trial = fakes.trial(index, 90 + np.log10(lr), 60 + np.log10(weight))
        trials.append(replace(trial, params={"method.reg_weight": weight, "optim.lr": lr}))
    return trials


def page_of(records, folder, search=SEARCH, **more):
    return write_page(search, records, folder, **more).read_text("utf-8")


def rows_of(page):
    """The text of each cell of the table of trials."""
    body = page.split('<table id="trials">')[1].split("</table>")[0].split("<tbody>")[1]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_the_answer_comes_first_and_every_trial_has_a_row(tmp_path):
    records = [fakes.reference(), *fakes.finished_search()[1:]]
    page = page_of(records, tmp_path, running=True)
    found = conclusion(SEARCH, records)
    parts = [*found.lines, "lipsum-tune confirm", "lipsum-tune export", "<h2>ID against"]
    places = [page.index(text) for text in parts]
    assert places == sorted(places)
    rows = rows_of(page)
    assert [row[1] for row in rows[:2]] == ["zero-shot", "untuned FT"]
    assert {row[1] for row in rows[2:]} == {record.trial_id for record in records[1:]}
    pruned = next(r for r in records if r.outcome == "pruned")
    row = next(row for row in rows if row[1] == pruned.trial_id)
    assert row[2:5] == ["", "", ""]
    assert f"pruned at {pruned.step}" in row


def test_a_stopped_trial_has_not_ended(tmp_path):
    records = [fakes.trial(0), fakes.trial(1, outcome="stopped")]
    assert "1 of 16 trials of 240 steps done (1 finished, 1 stopped)" in page_of(records, tmp_path)


def test_a_page_of_few_trials_needs_no_figure_of_many(tmp_path):
    page = page_of([fakes.trial(1)], tmp_path)
    assert "Needs 15 finished trials; there are 1." in page
    assert 'id="parallel"' not in page
    assert 'id="curves"' in page
    ended = [
        replace(fakes.trial(number), curve=fakes.trial(number).curve[-1:]) for number in (0, 1)
    ]
    assert 'id="curves"' not in page_of(ended, tmp_path)


def test_text_is_escaped_everywhere(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    search = replace(SEARCH, name=bad, ood_domains=(bad,), id_domain=bad)
    params = {"method.reg_weight": bad, "optim.lr": 1.0}
    records = [replace(trial, params=params) for trial in scattered(6)]
    records.append(fakes.trial(9, outcome="failed", error=f"ValueError: {bad}"))
    changed = [Changed(bad, True, 1, [{"true": bad, "before": bad, "after": bad, "jpeg": ""}])]
    write_results(tmp_path, {("trial-000", 1000): {"id_test/acc": 1.0}}, labels=[bad])
    page = page_of(records, tmp_path, replace(search, run_folder=tmp_path), changed=changed)
    assert "<img src=x" not in page
    assert "Confirmed on fresh seeds" in page


def test_the_page_of_an_ended_search_needs_nothing_beside_it(tmp_path):
    """That of a running one loads itself anew, and Plotly from a file."""
    small = page_of([], tmp_path, running=True)
    assert 'http-equiv="refresh"' in small
    assert (tmp_path / SCRIPT_FILE).is_file()
    page = page_of([fakes.trial(1)], tmp_path)
    assert 'http-equiv="refresh"' not in page
    assert not (tmp_path / SCRIPT_FILE).exists()
    assert not re.findall(
        r"<(?:script|link|img)[^>]*(?:src|href)=(?!\"data:)", page.split("<body>")[0]
    )
    assert len(small) < 300_000 < len(page)


def test_a_thousand_trials_fit_on_a_page(tmp_path):
    assert len(page_of(scattered(1000), tmp_path)) < 8_000_000


@pytest.mark.parametrize(
    "search",
    [
        replace(SEARCH, ood_domains=()),
        replace(SEARCH, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc"))),
        replace(SEARCH, constraints=(parse_constraint("id_val/acc >= 99", SEARCH.zero_shot),)),
    ],
    ids=["no OOD domain", "two objectives", "constraint"],
)
def test_every_kind_of_search_has_a_page(search, tmp_path):
    records = [fakes.reference(), *scattered(8), *fakes.compared_methods()[1:]]
    rows = rows_of(page_of(records, tmp_path, search))
    assert len({len(row) for row in rows}) == 1


def test_points_hold_their_parameters_and_trial(tmp_path):
    records = scattered(6)
    page = page_of(records, tmp_path)
    traces = re.search(r'Plotly\.newPlot\(\s*"id_vs_ood",\s*(\[.*?\]),\s*{', page, re.DOTALL)[1]
    trace = next(t for t in json.loads(traces) if t["name"] == "finished")
    assert trace["customdata"] == [record.trial_id for record in records]
    assert all("reg_weight=" in text and "lr=" in text for text in trace["hovertext"])


def test_importance_tells_which_parameter_moves_which_accuracy():
    drawn = Plots(SEARCH, scattered(40)).importance()
    shares = {bar.name: dict(zip(bar.y, bar.x, strict=True)) for bar in drawn.data}
    assert shares["ID accuracy"]["lr"] > 0.8
    assert shares["OOD accuracy"]["reg_weight"] > 0.8


def test_trials_of_equal_accuracy_have_a_page(tmp_path):
    records = [replace(trial, curve=fakes.trial(0, 100.0).curve) for trial in scattered(15)]
    assert 'id="importance"' in page_of(records, tmp_path)
    assert {share for bar in Plots(SEARCH, records).importance().data for share in bar.x} == {0}


def test_best_trials_that_differ_in_one_parameter_have_a_page(tmp_path):
    same = [replace(t, params={**t.params, "optim.lr": 1e-5}) for t in scattered(CONTOUR_TRIALS)]
    worse = [fakes.trial(200 + n, 1.0, 1.0, params={**same[0].params, "optim.lr": lr})
             for n, lr in enumerate((1e-6, 1e-4))]  # fmt: skip
    page = page_of([*same, *worse], tmp_path)
    assert NEEDS_TWO in page


def test_a_choice_of_many_is_left_out_of_importance():
    records = [
        replace(trial, params={**trial.params, "method.name": f"method-{index % 16}"})
        for index, trial in enumerate(scattered(32))
    ]
    assert set(Plots(SEARCH, records).importance().data[0].y) == {"reg_weight", "lr"}
    alike = [
        replace(r, params={**r.params, "optim.lr": 1e-4, "method.reg_weight": 1}) for r in records
    ]
    assert importance_lacks(alike) == "Needs two hyperparameters that vary."


def test_the_curve_breaks_where_other_images_are_measured():
    sample, whole = {"eval/images": 100.0}, {"eval/images": 400.0}
    curve = (
        fakes.report(80, 70, 50, **sample),
        fakes.report(160, 75, 55, **sample),
        fakes.report(240, 74, 54, **whole),
    )
    (best,) = Plots(SEARCH, [fakes.trial(1, curve=curve)]).curves().data
    assert list(best.y) == [60, 65, None, 64, None]


def test_methods_have_a_series_each():
    drawn = Plots(SEARCH, fakes.compared_methods()).id_vs_ood()
    assert set(fakes.METHODS) <= {trace.name for trace in drawn.data}


def test_parallel_coordinates_read_a_log_range_and_a_choice():
    records = [
        replace(trial, params={**trial.params, "texts": "a" if index % 2 else "b"})
        for index, trial in enumerate(scattered(6))
    ]
    (trace,) = Plots(SEARCH, records).parallel().data
    axes = {axis.label: axis for axis in trace.dimensions}
    lrs = [np.log10(record.params["optim.lr"]) for record in records]
    assert list(axes["lr"]["values"]) == pytest.approx(lrs)
    assert list(axes["texts"].ticktext) == ["b", "a"]
    assert list(axes["texts"]["values"]) == [0, 1] * 3


def test_pruned_trials_stand_below_the_others_on_the_axes_of_hyperparameters():
    finished, bad = scattered(6), {"method.reg_weight": 500.0, "optim.lr": 0.1}
    curve = fakes.trial(9, 99.0, 99.0).curve[:2]
    pruned = fakes.trial(9, outcome="pruned", curve=curve, params=bad)
    plots = Plots(SEARCH, [*finished, pruned])
    (trace,) = plots.parallel().data
    axes = {axis.label: axis for axis in trace.dimensions}
    assert axes["lr"]["values"][-1] == pytest.approx(-1)
    for name in ("ID", "OOD", "val/mean_acc"):
        *others, foot = axes[name]["values"]
        assert foot < min(others)
        assert axes[name]["ticktext"][axes[name]["tickvals"].index(foot)] == "pruned"
    marks = [trace for trace in plots.slices().data if trace.name.startswith("pruned")]
    assert [mark.x[0] for mark in marks] == [500.0, 0.1]
    assert all(mark.y[0] < min(r.last("val/mean_acc") for r in finished) for mark in marks)


def test_a_log_range_has_plain_ticks_and_a_log_colour_bar():
    records = scattered(6)
    plots = Plots(SEARCH, records)
    axes = plots.slices().layout
    for axis, low, high in ((axes.xaxis, 1e-2, 1e2), (axes.xaxis2, 1e-6, 1e-3)):
        assert [float(text) for text in axis.ticktext] == pytest.approx(axis.tickvals)
        assert len([tick for tick in axis.tickvals if low <= tick <= high]) > 2
    marker = next(t for t in plots.id_vs_ood().data if t.name == "finished").marker
    weights = [record.params["method.reg_weight"] for record in records]
    assert list(marker.color) == pytest.approx(np.log10(weights))
    ticks = [float(text) for text in marker.colorbar.ticktext]
    assert list(marker.colorbar.tickvals) == pytest.approx(np.log10(ticks))


def test_a_running_page_tells_what_is_done_and_when_it_was_written(tmp_path):
    running = fakes.trial(1, outcome="running", curve=())
    page = page_of([fakes.trial(0), running, fakes.trial(2, outcome="stopped")], tmp_path)
    assert "1 of 16 trials of 240 steps done (1 finished, 1 running, 1 stopped)" in page
    assert "written at" not in page
    page = page_of([], tmp_path, running=True)
    assert re.search(r"Running, written at \d\d:\d\d:\d\d\.", page)
    assert Plots(SEARCH, []).id_vs_ood().layout.showlegend


@pytest.mark.parametrize(
    "records",
    [
        [fakes.trial(n, math.nan, math.nan) for n in range(3)],
        [fakes.trial(n) for n in range(3)],
        [*(fakes.trial(n) for n in range(3)), fakes.trial(3, outcome="pruned")],
    ],
    ids=["diverged", "equal", "equal and pruned"],
)
def test_trials_without_a_difference_have_a_page(records, tmp_path):
    assert len(rows_of(page_of(records, tmp_path))) == 1 + len(records)
