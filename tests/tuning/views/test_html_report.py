import base64
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tuning.config.objectives import Objective
from tuning.confirmation.results import results_path
from tuning.views.figures.details import (
    MIN_TRIALS,
    contours_figure,
    curves_figure,
    drift_figure,
    importance_figure,
    slices_figure,
)
from tuning.views.figures.id_vs_ood import draw
from tuning.views.html_report import REPORT_FILE, write_report

SEARCH = fakes.search_record(Path("runs/<mine>"), name="<mine>")


def page_of(records, folder):
    write_report(SEARCH, records, folder)
    return (folder / REPORT_FILE).read_text("utf-8")


def figures_of(page):
    images = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    elements = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return [base64.b64decode(image) for image in images] + [e.encode() for e in elements]


def scattered(number):
    """Trials whose ID accuracy follows the learning rate alone, and OOD accuracy the weight."""
    rng = np.random.default_rng(0)
    trials = []
    for index in range(number):
        weight, lr = 10 ** rng.uniform(-2, 2), 10 ** rng.uniform(-6, -3)
        trial = fakes.trial(index, 90 + np.log10(lr), 60 + np.log10(weight))
        trials.append(replace(trial, params={"method.reg_weight": weight, "optim.lr": lr}))
    return trials


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a reference and few trials."""
    return page_of([fakes.reference(), *scattered(MIN_TRIALS)], tmp_path_factory.mktemp("report"))


def test_the_page_has_every_trial_and_whole_figures(page):
    assert all(record.trial_id in page for record in scattered(MIN_TRIALS))
    figures = figures_of(page)
    assert len(figures) == 6
    assert "How sure" not in page  # with so few trials
    assert {ElementTree.fromstring(figure).tag for figure in figures} == {
        "{http://www.w3.org/2000/svg}svg"
    }


def test_the_page_of_many_trials_has_few_vectors(tmp_path):
    records = scattered(301)  # above 300 they are drawn as pixels
    points_of_curves = sum(len(record.curve) for record in records)
    page = page_of(records, tmp_path)
    assert "They are the best of these with a probability of" in page
    assert len(page) < 1.2e6
    assert sum(figure.count(b"<use") for figure in figures_of(page)) < points_of_curves


def test_no_label_is_the_source_of_a_formula(page):
    labels = b"".join(re.findall(rb"<!--(.*?)-->", b"".join(figures_of(page))))
    assert b"1e-05" in labels  # of a logarithmic axis
    assert b"mathdefault" not in labels


def test_a_dollar_sign_starts_no_formula_and_no_domain_is_needed(tmp_path):
    odd = replace(SEARCH, id_domain="us$5_$x", ood_domains=())
    write_report(odd, [fakes.trial(0)], tmp_path)
    page = (tmp_path / REPORT_FILE).read_text("utf-8")
    assert "us$5_$x" in page
    assert "under shift</h2>" not in page


def test_a_character_that_xml_does_not_allow_leaves_figures_unlinked(tmp_path):
    write_report(replace(SEARCH, id_domain="re\x1bal"), [fakes.trial(0)], tmp_path)
    page = (tmp_path / REPORT_FILE).read_text("utf-8")
    assert "data:image/svg+xml" in page
    assert "<svg" not in page.partition("<h2>Trials")[0]


@pytest.mark.parametrize("records", [[], [fakes.reference()], [fakes.trial(0, outcome="running")]])
def test_a_search_that_has_just_begun_has_a_page(records, tmp_path):
    assert "zero-shot" in page_of(records, tmp_path)


def test_the_page_has_what_confirm_left_in_the_run_folder(tmp_path):
    search = replace(SEARCH, run_folder=tmp_path)

    def page():
        write_report(search, [fakes.reference(), *scattered(1), fakes.trial(1, 99.0)], tmp_path)
        return (tmp_path / REPORT_FILE).read_text("utf-8")

    before = page()
    assert "Confirmed on fresh seeds" not in before
    assert f"lipsum-tune confirm {tmp_path}" in before
    metrics = {"ood_test/mean_acc": 60.0, "val/mean_acc": 70.0}
    results = {
        (name, seed): {**metrics, "id_test/acc": float(seed - 929)}
        for seed in (1000, 1001)
        for name in ("ft", "trial-001")
    }
    write_results(tmp_path, results, ("id_val",))
    confirmed = page()
    assert "71.5 ± 0.7" in confirmed
    assert "ID against OOD test accuracy of each seed" in confirmed
    assert f"lipsum-tune confirm {tmp_path}" not in confirmed
    assert '<a href="#confirmed">' in confirmed
    results_path(tmp_path).write_text("nonsense\n")
    damaged = page()
    assert "The results of lipsum-tune confirm are left out" in damaged
    assert "line 1 is damaged" in damaged


def test_contours_have_a_panel_for_each_pair_that_varies_independently():
    trials = scattered(MIN_TRIALS)
    figure = contours_figure(SEARCH, trials)
    assert figure is not None
    axes, _colours = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("reg_weight", "lr")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    (points,) = [c for c in axes.collections if len(c.get_offsets()) == MIN_TRIALS]
    assert points.get_offsets()[:, 0].tolist() == [t.params["method.reg_weight"] for t in trials]

    def with_params(**params):
        return [replace(t, params={**t.params, **params}) for t in trials]

    assert contours_figure(SEARCH, with_params(**{"optim.lr": 1e-4})) is None
    assert contours_figure(SEARCH, with_params(**{"optim.lr": "high"})) is None
    line = [replace(t, params={"a": 1.0 + t.number, "b": 2.0 * t.number}) for t in trials]
    assert contours_figure(SEARCH, line) is None
    assert contours_figure(SEARCH, trials[1:]) is None


def test_curves_have_the_unit_and_the_label_of_untuned_fine_tuning():
    (axes,) = curves_figure(SEARCH, [fakes.reference(), fakes.trial(0)]).axes
    assert axes.get_ylabel() == f"{SEARCH.objectives[0].metric}, %"
    assert any(text.get_text().startswith(" FT, not tuned") for text in axes.texts)


def test_the_page_of_few_trials_says_what_it_lacks(tmp_path):
    page = page_of(scattered(MIN_TRIALS - 1), tmp_path)
    assert "hyperparameters needs 6 finished trials (5 so far)" in page
    assert "estimated from 8 finished trials on" in page


def test_importance_tells_which_parameter_moves_which_accuracy():
    assert importance_figure(scattered(MIN_TRIALS - 1)) is None
    figure = importance_figure(scattered(40))
    assert figure is not None
    (axes,) = figure.axes
    of_id, of_ood = ([bar.get_width() for bar in bars] for bars in axes.containers)
    weight, lr = 0, 1  # in the order of the parameters
    assert of_id[lr] > 0.8 > 0.2 > of_id[weight]
    assert of_ood[weight] > 0.8 > 0.2 > of_ood[lr]


def test_without_ood_domains_the_id_accuracy_alone_is_drawn():
    trials = [
        replace(t, curve=tuple({"step": p["step"], "id_val/acc": p["id_val/acc"]} for p in t.curve))
        for t in scattered(40)
    ]
    importance, slices = importance_figure(trials), slices_figure(trials)
    assert importance is not None
    assert slices is not None
    assert len(importance.axes[0].containers) == 1
    assert [len(axes.collections) for axes in slices.axes] == [1, 1]
    search = replace(SEARCH, ood_domains=(), objectives=(Objective("id_val/acc"),))
    assert "no OOD domain" in draw(search, trials)[1]


def test_ood_accuracy_is_drawn_over_both_distances():
    distances = [(0.5, 0.01), (2.0, 0.02), (8.0, 0.4)]
    trials = [
        fakes.trial(
            number,
            curve=(
                fakes.report(
                    fakes.TOTAL_STEPS,
                    85.0,
                    60.0 + number,
                    **{"ood_val/mean_energy_gap": gap, "ood_val/mean_feature_distortion": moved},
                ),
            ),
        )
        for number, (gap, moved) in enumerate(distances)
    ]
    assert drift_figure(SEARCH, [trials[0], fakes.trial(4)]) is None
    figure = drift_figure(SEARCH, [*trials, fakes.trial(4)])
    assert figure is not None
    for index, axes in enumerate(figure.axes):
        drawn = axes.collections[0].get_offsets().tolist()
        assert drawn == [[found[index], 60.0 + n] for n, found in enumerate(distances)]
