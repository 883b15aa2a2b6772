import json
import math
import re
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from search_spaces import Categorical, Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.confirmation.written import confirmed, write_results
from tests.tuning.result_tables import printed
from tests.tuning.run_folders import search_file, trial, write_run
from tuning import load_run
from tuning.config.objectives import Objective, parse_constraint
from tuning.log.journal import Journal
from tuning.log.paths import results_path
from tuning.log.records import TESTED, Chosen, Model
from tuning.results.conclusion import conclusion
from tuning.results.model import chosen_event
from tuning.views.changed_images import Changed
from tuning.views.figures import Plots, optuna_figures
from tuning.views.overview import comparison
from tuning.views.page import write_page
from tuning.views.results import ResultsView

SPACE = SearchSpace(
    parameters={
        "method.reg_weight": Float(low=1e-2, high=1e2, log=True),
        "optim.lr": Float(low=1e-6, high=1e-3, log=True),
    }
)
SEARCH = fakes.Search(spaces={None: SPACE})


def scattered(number):
    """Trials whose ID accuracy follows the learning rate alone, and OOD accuracy the weight."""
    rng = np.random.default_rng(0)
    trials = []
    for index in range(number):
        weight, lr = 10 ** rng.uniform(-2, 2), 10 ** rng.uniform(-6, -3)
        one = fakes.trial(index, 90 + np.log10(lr), 60 + np.log10(weight))
        trials.append(replace(one, params={"method.reg_weight": weight, "optim.lr": lr}))
    return trials


def page_of(records, folder, search=SEARCH, is_live=False, **more):
    write_page(replace(search, folder=folder).run(records, is_live=is_live), **more)
    return (folder / "report" / "index.html").read_text("utf-8")


def rows_of(page):
    """The text of each cell of the table of trials."""
    body = page.split('<table id="trials">')[1].split("</table>")[0].split("<tbody>")[1]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_the_answer_comes_first_and_every_trial_has_a_row(tmp_path):
    records = [fakes.reference(), *fakes.finished_search()[1:]]
    page = page_of(records, tmp_path, is_live=True)
    found = SEARCH.run(records).conclusion
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


def test_text_is_escaped_everywhere(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    search = replace(SEARCH, ood_domains=(bad,), id_domain=f"{bad}!")
    params = {"method.reg_weight": bad, "optim.lr": 1.0}
    records = [replace(trial, params=params) for trial in scattered(6)]
    records.append(fakes.trial(9, outcome="failed", error=f"ValueError: {bad}"))
    changed = [Changed(bad, True, 1, [{"true": bad, "before": bad, "after": bad, "jpeg": ""}])]
    folder = tmp_path / bad
    write_results(folder, {("trial-000", 1000): {"id_test/acc": 1.0}}, labels=[bad])
    page = page_of(records, folder, search, changed=changed)
    assert "<img src=x" not in page
    assert "Confirmed on fresh seeds" in page


def test_the_page_of_a_running_search_loads_itself_anew(tmp_path):
    """A page needs nothing beside it."""
    page = page_of([], tmp_path, is_live=True)
    assert 'http-equiv="refresh"' in page
    assert re.search(r"Running, written at \d\d:\d\d:\d\d\.", page)
    running = fakes.trial(1, outcome="running", curve=())
    page = page_of([fakes.trial(0), running, fakes.trial(2, outcome="stopped")], tmp_path)
    assert "1 of 16 trials of 240 steps done (1 finished, 1 running, 1 stopped)" in page
    for text in ('http-equiv="refresh"', "written at"):
        assert text not in page
    head = page.split("<body>")[0]
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=(?!\"data:)", head)


def test_a_page_grows_little_with_each_trial(tmp_path):
    few, many = (len(page_of(scattered(number), tmp_path)) for number in (20, 120))
    assert (many - few) / 100 < 3000  # bytes


MIXED = [fakes.reference(), *scattered(8), *fakes.compared_methods()[1:]]
EQUAL = [fakes.trial(n) for n in range(3)]


@pytest.mark.parametrize(
    ("changes", "records"),
    [
        ({"ood_domains": ()}, MIXED),
        ({"objectives": (Objective("id_val/acc"), Objective("ood_val/mean_acc"))}, MIXED),
        ({"constraints": (parse_constraint("id_val/acc >= 99", SEARCH.zero_shot),)}, MIXED),
        ({}, [fakes.trial(n, math.nan, math.nan) for n in range(3)]),
        ({}, EQUAL),
        ({}, [*EQUAL, fakes.trial(3, outcome="pruned")]),
    ],
    ids=["no OOD domain", "two objectives", "constraint", "diverged", "equal", "equal and pruned"],
)
def test_every_kind_of_search_has_a_page(changes, records, tmp_path):
    rows = rows_of(page_of(records, tmp_path, replace(SEARCH, **changes)))
    assert len(rows) == 1 + len(records)
    assert len({len(row) for row in rows}) == 1


def test_points_hold_their_parameters_and_trial(tmp_path):
    records = scattered(6)
    page = page_of(records, tmp_path)
    traces = re.search(r'Plotly\.newPlot\(\s*"id_vs_ood",\s*(\[.*?\]),\s*{', page, re.DOTALL)[1]
    trace = next(t for t in json.loads(traces) if t["name"] == "finished")
    assert trace["customdata"] == [record.trial_id for record in records]
    assert all("reg_weight=" in text and "lr=" in text for text in trace["hovertext"])


def test_a_page_of_few_trials_needs_no_figure_of_many(tmp_path):
    page = page_of([fakes.trial(1)], tmp_path)
    assert 'id="slices"' not in page
    many = page_of(scattered(6), tmp_path)
    assert 'id="slices"' in many
    assert 'id="curves"' in many
    assert "<h2>Importance</h2>" not in many
    ended = [replace(trial, curve=trial.curve[-1:]) for trial in scattered(6)]
    assert 'id="curves"' not in page_of(ended, tmp_path)


def test_importance_tells_which_parameter_moves_which_accuracy(tmp_path):
    figures = optuna_figures(SEARCH.run(scattered(40)))
    for accuracy, parameter in (("ID", "optim.lr"), ("OOD", "method.reg_weight")):
        (bar,) = figures[f"importance_{accuracy}"].data
        assert dict(zip(bar.y, bar.x, strict=True))[parameter] > 0.8
    assert "<h2>Importance</h2>" in page_of(scattered(40), tmp_path)


def test_a_choice_of_many_is_left_out_of_importance():
    space = SearchSpace(parameters={
        **SPACE.parameters, "data.texts": Categorical(choices=tuple(f"t{n}" for n in range(16))),
    })  # fmt: skip
    records = [
        replace(trial, params={**trial.params, "data.texts": f"t{index % 16}"})
        for index, trial in enumerate(scattered(32))
    ]
    figures = optuna_figures(replace(SEARCH, spaces={None: space}).run(records))
    (bar,) = figures["importance_ID"].data
    assert set(bar.y) == {"method.reg_weight", "optim.lr"}


def test_the_weight_of_the_regulariser_has_a_log_colour_bar():
    records = scattered(6)
    marker = next(
        t for t in Plots(SEARCH.run(records)).id_vs_ood().data if t.name == "finished"
    ).marker
    weights = np.array([record.params["method.reg_weight"] for record in records])
    assert list(marker.color) == pytest.approx((np.log10(weights) + 2) / 4)
    assert [float(text) for text in marker.colorbar.ticktext] == [0.01, 0.1, 1, 10, 100]


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_everything_names_one_model(is_confirmed, images_root, tmp_path, monkeypatch):
    """Before `confirm`, untuned FT is higher than all trials; after it, the second trial is.

    All take it from one conclusion, which the run makes once."""
    conclude = Mock(wraps=conclusion)
    monkeypatch.setattr("tuning.run.conclusion", conclude)
    trials = [trial(0, 80.0, 60.0), trial(1, 79.0, 60.0)]
    folder = write_run(tmp_path / "mine", search_file(images_root), [fakes.reference(), *trials])
    best, label = "ft", "untuned FT"
    if is_confirmed:
        confirmed(folder, ft=(70.0, 50.0), trial_000=(71.0, 51.0), trial_001=(73.0, 52.0))
        best = label = "trial-001"
    run = load_run(folder)
    view = ResultsView(str(folder / "train"))
    view.write(run)
    page = (folder / "report" / "index.html").read_text("utf-8")
    found = run.conclusion
    assert label in found.lines[0]
    assert f"# {label}, for open_clip" in found.commands("mine")[-1]
    assert re.findall(r'<tr data-trial="([^"]*)" class="best', page) == [best]
    assert f"left out: the weights of {best} were not kept" in page
    (circle,) = (t for t in run.plot.id_vs_ood().data if t.name == "best")
    assert circle.text == (label,)
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["trial_id"] for row in rows if row["is_best"]] == [best]
    assert run.best.trial_id == best
    conclude.assert_called_once_with(run)
    (beside,) = re.findall("^best .*", printed(comparison([folder, folder]), 200), re.MULTILINE)
    assert beside.count(label) == 2
    shown = [row[1] for row in rows_of(page) if row[1].startswith("trial")]
    assert shown == (["trial-001", "trial-000"] if is_confirmed else ["trial-000", "trial-001"])


def test_figures_of_a_model_stand_once_in_its_table(tmp_path):
    names = {"ft": (70.0, 50.0), "trial_001": (73.0, 52.0)}
    confirmed(tmp_path, **names)
    journal = Journal(results_path(tmp_path).parent)
    chosen = Model(1, Chosen("single", {}, ({"name": "trial-001", "seed": 0},)), 2)
    journal.model(chosen_event(chosen))
    journal.model({"event": TESTED, "number": 1, "metrics": {"id_test/acc": 61.7}})
    journal.close()
    page = page_of([fakes.trial(0), fakes.trial(1)], tmp_path)
    assert page.count("61.7") == 1
    assert page.index("<h2>The model</h2>") < page.index("61.7") < page.index("<h2>Confirmed")
    assert page.count("The model is ") == 1


def test_the_commands_of_the_page_name_the_run_as_the_terminal_does(tmp_path, monkeypatch):
    """With another `search.storage`, the name alone would be a run in `runs/`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere" / "mine"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "search.yaml").touch()
    folder.mkdir(parents=True)
    page = page_of([fakes.trial(0)], folder)
    assert f"lipsum-tune confirm {folder} " in page


def test_methods_have_a_series_each():
    drawn = Plots(SEARCH.run(fakes.compared_methods())).id_vs_ood()
    assert set(fakes.METHODS) <= {trace.name for trace in drawn.data}
    assert Plots(SEARCH.run()).id_vs_ood().layout.showlegend
