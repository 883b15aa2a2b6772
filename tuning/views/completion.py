"""What is made of a run, brought up to date once no driver runs it.

A driver brings its own run up to date: while there is one, nothing is written here.
"""

from __future__ import annotations

from trainers.data.store import url_of
from trainers.errors import ConfigError
from trainers.redact import redact
from tuning.algorithms.studies import quiet_optuna
from tuning.log.journal import is_running
from tuning.log.paths import TRAIN_FOLDER
from tuning.run import Run
from tuning.views.dashboard import DashboardView, open_storage
from tuning.views.follower import View, complete
from tuning.views.mlflow.client import sqlite_path, tracking_uri
from tuning.views.mlflow.writer import MlflowView
from tuning.views.results import ResultsView


def complete_files(run: Run) -> list[str]:
    """Write tables and page, and what the study of the dashboard lacks.

    Returns:
        What could not be written, in one line each.
    """
    if is_running(run.folder):
        return []
    views: list[View] = [ResultsView(url_of(run.checkpoint_root, TRAIN_FOLDER))]
    problems = []
    try:
        views.append(DashboardView(open_storage(run.folder, run.file.search.study_storage)))
    except ConfigError as error:
        problems.append(str(error))
    with quiet_optuna():
        lacks = complete(run, views)
    return [*problems, *(f"{view.name} cannot be written: {lacks[view]}" for view in lacks)]


def complete_mlflow(run: Run) -> str:
    """Write what MLflow lacks of a search and of its confirmation.

    Runs of MLflow that a killed driver left RUNNING are closed; a resume reopens them.

    Returns:
        What MLflow has now, in one line.
    """
    if not run.history.run_id:
        return "its run cannot be found: the line of the journal with its ID is damaged"
    uri = tracking_uri(run.file.search.tracking.uri, run.folder.parent)
    where, database = redact(uri), sqlite_path(uri)
    if database is not None and not database.is_file():
        return f"{where} is not here"  # the run folder was moved, or never had one
    if is_running(run.folder):
        return f"{where} is written by the running search"
    for reason in complete(run, [MlflowView(uri)]).values():
        return f"{where} lacks a part of the run; repeat this later ({reason})"
    return f"{where} has the whole run"
