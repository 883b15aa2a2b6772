"""What a confirmation writes to MLflow."""

from dataclasses import replace

import pytest

from tests.tuning.databases import with_database
from tests.tuning.run_folders import search_file, write_run
from tuning.confirmation.results import FT, Configuration, Confirmation
from tuning.confirmation.tracking import log_confirmation
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import load_run
from tuning.views.mlflow.callback import backfill
from tuning.views.mlflow.client import connect, default_tracking_uri

ENDED = TrialRecord("", 0, "trial", {}, "finished")


def test_means_and_differences_are_those_of_all_seeds(images_root, tmp_path):
    run = write_run(with_database(tmp_path / "runs") / "search", search_file(images_root))
    uri, search = default_tracking_uri(run.parent), load_run(run).search
    backfill(load_run(run))
    client, experiment_id = connect(uri, "lipsum-tune")
    seeds = (1000, 1001)

    def logged(seeds, **accuracies):
        results = [
            ((name, seed), replace(ENDED, trial_id=name, curve=({"id_test/acc": acc},)))
            for name, found in accuracies.items()
            for seed, acc in zip((1000, 1001), found, strict=False)
        ]
        configurations = (Configuration(FT, {}), Configuration("trial", {}))
        found = Confirmation(search, seeds, configurations, dict(results), {})
        log_confirmation(uri, "lipsum-tune", found)
        (run,) = client.search_runs([experiment_id], "tags.confirms = 'trial'")
        return run

    for of_ft, difference in (([60.0], 10.0), ([60.0, 72.0], 4.5)):
        for asked in (seeds, seeds, seeds[:1]):  # the later calls have nothing to add
            trial = logged(asked, ft=of_ft, trial=[70.0, 71.0])
        assert trial.data.metrics["vs_ft/id_test/acc"] == pytest.approx(difference)
        assert trial.data.metrics["id_test/acc"] == 70.5
        assert trial.data.tags["seeds"] == "1000, 1001"
    history = client.get_metric_history(trial.info.run_id, "vs_ft/id_test/acc")
    assert len(history) == 2
