"""The page of MLflow that shows a search, as its server reads it."""

import json
import math
from contextlib import closing
from dataclasses import replace

from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from tests.tuning.views.mlflow.content import follower_of
from tuning.config.objectives import Objective
from tuning.log.journal import Journal
from tuning.results.ranking import best_trial
from tuning.run import load_run
from tuning.views.mlflow.client import connect, default_tracking_uri, metrics_of
from tuning.views.mlflow.shared_view import order_of, share_view, view_path


def shared(runs, search):
    """The view as a page finds it: through the key in the address, in the experiment's tags."""
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    address = view_path(experiment_id, search)
    assert address.startswith(f"/#/experiments/{experiment_id}/runs?")
    key = address.partition("viewStateShareKey=")[2]
    return json.loads(client.get_experiment(experiment_id).tags[f"mlflow.sharedViewState.{key}"])


def rows(runs, search):
    view = shared(runs, search)
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    found = client.search_runs([experiment_id], view["searchFilter"], order_by=[order])
    return [run.data.tags["trial_id"] for run in found]


def test_finished_trials_come_first_and_the_best_before_all(images_root, runs):
    records = [
        fakes.reference(curve=(fakes.report(240, 95.0, 95.0),)),
        fakes.trial(0, 90.0, 50.0),
        fakes.trial(1, 80.0, 62.0),  # misses the constraint once trial-003 has ended
        fakes.trial(2, 99.0, 99.0, outcome="pruned"),
        fakes.trial(3, 95.0, 46.0),
        fakes.trial(4, 98.0, 98.0, outcome="failed"),
        fakes.trial(5, 70.0, 70.0, outcome="pruned", curve=fakes.trial(5).curve[:2]),
    ]
    file = search_file(images_root, search__constraints=["id_val/acc >= best - 10"])
    run = write_run(runs / "search", file, records[:4])
    search = load_run(run)
    follower = follower_of(run)
    follower.turn()
    assert rows(runs, search)[:2] == ["trial-001", "trial-000"]
    with closing(Journal(run)) as journal:
        journal.session_started(file.fingerprints())
        for record in records[4:]:
            journal.trial_started(record)
            journal.trial_reported(replace(record, outcome="running"))
            journal.trial_ended(record)
    follower.turn(is_over=True)
    found = rows(runs, search)
    assert found[:2] == ["trial-003", "trial-000"]
    assert found[0] == best_trial(search.goal, records).trial_id
    assert found[2:] == ["ft", "zero-shot", "trial-001", "trial-002", "trial-005", "trial-004"]
    columns = shared(runs, search)["selectedColumns"]
    assert columns[:2] == ["metrics.`id_val/acc`", "metrics.`ood_val/mean_acc`"]
    assert columns[2:4] == ["metrics.`val/mean_acc`", "tags.`outcome`"]
    assert {"params.`optim.lr`", "metrics.`ood_val/sketch/acc`"} <= set(columns)


def test_less_of_an_objective_may_be_better_and_domains_may_have_any_name(runs):
    domains = ("photo (raw)", "photo [raw]", "photo _raw_", "p'op")
    objective = Objective("id_val/nll", "min")
    search = fakes.Search(runs / "mine", ood_domains=domains, objectives=(objective,))
    search = search.run([fakes.trial(0)])
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    share_view(client, experiment_id, search)
    view = shared(runs, search)
    assert (view["orderByKey"], view["orderByAsc"]) == ("tags.`order`", True)
    orders = [
        order_of(search, fakes.trial(0, curve=({"step": 1, "id_val/nll": nll},)), {})
        for nll in (-1e12, -0.5, 0.0, 2e-6, 9.9, 10.0, 1e12, math.inf)
    ]
    assert orders == sorted(orders)
    first, second = (order_of(search, fakes.trial(number), {}) for number in (9, 10))
    assert first < second  # they are equal
    run = client.create_run(experiment_id)
    report = {f"ood_val/{domain}/acc": float(i) for i, domain in enumerate(domains)}
    client.log_batch(run.info.run_id, metrics_of(report, 1, 0.0))
    metrics = client.get_run(run.info.run_id).data.metrics
    assert sorted(metrics.values()) == [0.0, 1.0, 2.0, 3.0]
    assert {f"metrics.`{key}`" for key in metrics} | {"metrics.`id_val/nll`"} <= {
        *view["selectedColumns"]
    }
