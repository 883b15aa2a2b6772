import base64
import json
import zlib
from dataclasses import replace

from tests.tuning import fakes
from tuning.config.objectives import Objective
from tuning.views.mlflow.client import connect, default_tracking_uri
from tuning.views.mlflow.runs import SearchRuns
from tuning.views.mlflow.view import share_view, view_path

PARAMS = ["method.reg_weight", "optim.lr"]


def shared(runs, search):
    """The view as a page finds it: through the key in the address, in the experiment's tags."""
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    share_view(client, experiment_id, search, PARAMS)
    address = view_path(experiment_id, search)
    assert address.startswith(f"/#/experiments/{experiment_id}/runs?")
    key = address.partition("viewStateShareKey=")[2]
    tag = client.get_experiment(experiment_id).tags[f"mlflow.sharedViewState.{key}"]
    packed = base64.b64decode(tag.removeprefix("deflate;"))
    view = json.loads(zlib.decompress(packed))
    return view


def test_the_view_has_the_trials_of_one_search_best_first(runs):
    view = shared(runs, fakes.search_record(runs / "mine"))
    assert view["searchFilter"] == "tags.search_id = 'mine' and tags.kind != 'search'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/mean_acc`", False)
    columns = view["selectedColumns"]
    assert columns[:2] == ["metrics.`id_val/acc`", "metrics.`ood_val/mean_acc`"]
    assert columns[2:4] == ["metrics.`val/mean_acc`", "tags.`outcome`"]
    assert {"params.`optim.lr`", "metrics.`ood_val/sketch/acc`"} <= set(columns)
    charts = {chart["type"]: chart for chart in view["compareRunCharts"]}
    assert charts["SCATTER"]["yaxis"]["key"] == "ood_val/mean_acc"
    assert charts["PARALLEL"]["selectedParams"] == PARAMS


def test_less_of_an_objective_may_be_better(runs):
    search = fakes.search_record(runs / "mine")
    view = shared(runs, replace(search, objectives=(Objective("id_val/nll", "min"),)))
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`id_val/nll`", True)
    assert "metrics.`id_val/nll`" in view["selectedColumns"]


def test_domains_with_punctuation_have_columns_of_their_own(runs):
    domains = ("photo (raw)", "photo [raw]", "photo _raw_", "p'op")
    metric = "ood_val/photo (raw)/acc"
    search = fakes.search_record(
        runs / "mine", ood_domains=domains, objectives=(Objective(metric),)
    )
    report = {"step": 240.0, **{f"ood_val/{d}/acc": float(i) for i, d in enumerate(domains)}}
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    written = SearchRuns(client, experiment_id, search)
    written.open_parent()
    written.write(fakes.trial(1, curve=(report,)))
    (run,) = client.search_runs([experiment_id], "tags.trial_id = 'trial-001'")
    view = shared(runs, search)
    shown = {column.split("`")[1] for column in view["selectedColumns"]}
    found = {key: value for key, value in run.data.metrics.items() if key.startswith("ood_val/")}
    assert sorted(found.values()) == [0.0, 1.0, 2.0, 3.0]
    assert found.keys() <= shown
    assert found[view["orderByKey"].split("`")[1]] == report[metric]
    assert found["ood_val/photo _raw_/acc"] == 2.0
    assert found["ood_val/p_op/acc"] == 3.0


def test_two_searches_of_an_experiment_have_views_of_their_own(runs):
    mine = shared(runs, fakes.search_record(runs / "mine"))
    yours = shared(runs, fakes.search_record(runs / "yours"))
    assert mine["searchFilter"] != yours["searchFilter"]
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    tags = client.get_experiment(experiment_id).tags
    assert sum(name.startswith("mlflow.sharedViewState.") for name in tags) == 2
