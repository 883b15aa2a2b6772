"""What a confirmation writes to MLflow."""

from dataclasses import replace

import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import result
from tuning.confirmation.results import FT, Configuration, Confirmation
from tuning.views.mlflow.client import connect, default_tracking_uri
from tuning.views.mlflow.results import log_confirmation
from tuning.views.mlflow.runs import SearchRuns

SEEDS = (1000, 1001)


def confirmation(search, **accuracies):
    """Accuracies of `ft` and `trial` by seed."""
    results = {
        (name, seed): result((name, seed), {"id_test/acc": accuracy})
        for name, found in accuracies.items()
        for seed, accuracy in zip(SEEDS, found, strict=False)
    }
    configurations = (Configuration(FT, {}), Configuration("trial", {}))
    return Confirmation(search, SEEDS, configurations, results, {})


def test_differences_follow_a_baseline_that_was_tried_again(runs):
    search, uri = fakes.search_record(runs / "mine"), default_tracking_uri(runs)
    client, experiment_id = connect(uri, "lipsum-tune")
    SearchRuns(client, experiment_id, search).open_parent()
    for of_ft, difference in (([60.0], 10.0), ([60.0, 72.0], 4.5)):
        for _ in range(2):  # the second call has nothing to add
            found = confirmation(search, ft=of_ft, trial=[70.0, 71.0])
            log_confirmation(uri, "lipsum-tune", found)
        (run,) = client.search_runs([experiment_id], "tags.confirms = 'trial'")
        assert run.data.metrics["vs_ft/id_test/acc"] == pytest.approx(difference)
    assert len(client.get_metric_history(run.info.run_id, "vs_ft/id_test/acc")) == 2


def test_a_later_call_with_fewer_seeds_leaves_the_means_over_all(runs):
    search, uri = fakes.search_record(runs / "mine"), default_tracking_uri(runs)
    client, experiment_id = connect(uri, "lipsum-tune")
    SearchRuns(client, experiment_id, search).open_parent()
    found = confirmation(search, ft=[60.0, 62.0], trial=[70.0, 73.0])
    for seeds in (SEEDS, SEEDS[:1]):
        log_confirmation(uri, "lipsum-tune", replace(found, seeds=seeds))
        (run,) = client.search_runs([experiment_id], "tags.confirms = 'trial'")
        assert run.data.tags["seeds"] == "1000, 1001"
        assert run.data.metrics["id_test/acc"] == 71.5
        assert run.data.metrics["vs_ft/id_test/acc"] == 10.5
