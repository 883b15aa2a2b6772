"""What an MLflow database contains, read with SQL."""

import sqlite3
from contextlib import closing

from mlflow.tracking import MlflowClient

from tuning.run import load_run
from tuning.views.follower import Follower
from tuning.views.mlflow.client import connect, default_tracking_uri
from tuning.views.mlflow.writer import MlflowView

TABLES = {"runs": "run_uuid, status, start_time, end_time"} | dict.fromkeys(
    ("tags", "params", "metrics", "latest_metrics"), "run_uuid, *"
)


def content(runs):
    """The rows of each table, with the names of runs in place of their IDs."""
    with closing(sqlite3.connect(runs / "mlflow.db")) as database:
        active = "select run_uuid, name from runs where lifecycle_stage = 'active'"
        names = dict(database.execute(active))
        return {
            table: sorted(
                str([names.get(value, value) for value in row])
                for row in database.execute(f"select {columns} from {table}")
                if row[0] in names
            )
            for table, columns in TABLES.items()
        }


def found_runs(runs):
    """The runs that MLflow has, by trial; the parent under None."""
    client, experiment_id = connect(default_tracking_uri(runs), "lipsum-tune")
    found = client.search_runs([experiment_id])
    by_trial = {run.data.tags.get("trial_id"): run for run in found}
    assert len(by_trial) == len(found), "a trial has two runs"
    return by_trial


def points(runs, run, metric):
    """Step, value and time in ms of a metric in its run."""
    history = MlflowClient(default_tracking_uri(runs)).get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value, point.timestamp) for point in history]


def follower_of(run, runs=None):
    """A follower without a thread, whose errors are raised."""
    view = MlflowView(default_tracking_uri(runs or run.parent), seconds=0.0)
    view.start(load_run(run))
    view.close()
    follower = Follower([view])
    follower.read(load_run(run))
    return follower
