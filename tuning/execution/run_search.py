"""Run a search: Ray Tune over Ray Train trials, proposed by Optuna, recorded by the callbacks.

A new search, a resumed and an extended one are the same thing: whatever the journal of the run
folder already holds is told to study, scheduler, budget and callbacks, and the rest is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from trainers.config import TrialConfig
from trainers.data.data_root import EMBEDDED, resolve_root
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from trainers.loop.state import load_split, start
from tuning.algorithms.budget import Budget
from tuning.algorithms.method_studies import Branch
from tuning.algorithms.warm_start import load_earlier
from tuning.checkpoints.files import TRAIN_FOLDER, checkpoint_home
from tuning.checkpoints.retention import CheckpointCallback
from tuning.checkpoints.storage_check import check_nodes
from tuning.config.schema import ResourcesConfig, SearchFile
from tuning.execution.ray_errors import resumable, root_cause, storage_failure
from tuning.execution.ray_session import concurrent_trials, ray_session
from tuning.execution.ray_workarounds import tune_workarounds
from tuning.execution.signals import interrupted_by_sigterm
from tuning.execution.trainable import trainable
from tuning.execution.tune_runner import create_tuner
from tuning.mlflow_logging.callback import MlflowCallback
from tuning.mlflow_logging.client import TrackingError, tracking_uri
from tuning.reporting.leaderboard import figures
from tuning.reporting.progress import ProgressCallback
from tuning.reporting.tables.callback import TablesCallback
from tuning.runs.journal import JOURNAL_FILE, History, Journal, read_history
from tuning.runs.recorder import Recorder
from tuning.runs.records import Callback, SearchOutcome, SearchRecord, TrialRecord
from tuning.runs.recovery import take_up
from tuning.runs.run_folder import create_run_folder, search_record
from tuning.security.databases import check_drivers
from tuning.selection.ranking import best_trial


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and where it is kept."""

    search: SearchRecord
    records: Sequence[TrialRecord]
    """Trials in the order of their proposal, references first."""
    outcome: SearchOutcome
    run_folder: Path
    tracking_uri: str
    ended_by: str | None = None
    """The budget that ended it, where it is not the number of trials."""
    checkpoints: str | None = None
    """Folder or URL of the trials' checkpoints."""

    @property
    def best(self) -> TrialRecord | None:
        """The trial that the objective chooses; None where no trial has a value."""
        return best_trial(self.search, self.records)

    @property
    def failed(self) -> list[TrialRecord]:
        """The trials that raised."""
        return [record for record in self.records if record.outcome == "failed"]


def run_search(
    file: SearchFile, *, address: str | None = None, console: Console | None = None
) -> SearchResult:
    """Run the search of a configuration to its end, in a new run folder.

    Args:
        file: from `tuning.config.schema.load_config`.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for the display of progress; by default the terminal's standard error.

    Raises:
        ConfigError: before anything runs: no such data, too few resources, MLflow out of reach.
    """
    for folder in file.search.warm_start.runs:
        load_earlier(folder)  # what cannot be read is better known at once
    resolve_root(file.trial.data.root, progress=True)
    run_folder = create_run_folder(file)
    try:
        return continue_search(run_folder, file, address=address, console=console)
    except (ConfigError, TrackingError):
        if not (run_folder / JOURNAL_FILE).is_file() or not read_history(run_folder).records:
            shutil.rmtree(run_folder)  # it never began
        raise


def continue_search(
    run_folder: Path,
    file: SearchFile,
    *,
    address: str | None = None,
    console: Console | None = None,
) -> SearchResult:
    """Run what is left of the search in a run folder; see `tuning.runs.resume` for what may differ.

    Raises:
        ConfigError: before anything runs; another process is running this search.
        StorageFailed: run folder or checkpoints could not be kept; it can be resumed.
    """
    console = console or Console(stderr=True)
    resolve_root(file.trial.data.root, progress=True)
    uri = tracking_uri(file.search.tracking.uri, run_folder.parent)
    check_drivers({"search.tracking.uri": uri, "search.study_storage": file.search.study_storage})
    with resumable(run_folder):
        return _continue(run_folder, file, uri, address, console)


def _continue(
    run_folder: Path, file: SearchFile, uri: str, address: str | None, console: Console
) -> SearchResult:
    journal, keep = Journal(run_folder), file.search.checkpoints
    try:
        with (
            ray_session(address),
            interrupted_by_sigterm(),
            ProgressCallback(console) as progress,
        ):
            home = checkpoint_home(run_folder, keep.storage, file.search.name, journal.run_id)
            check_nodes(file, home)
            concurrent = concurrent_trials(file.search.resources)
            checkpoints = open_store(f"{home}/{TRAIN_FOLDER}")
            journal.session_started(file.fingerprints())
            search = _measure_zero_shot(run_folder, file, journal, console)
            branches, history = take_up(search, file, journal, checkpoints, console)
            budget = Budget(file.search.budget, search, history)
            callbacks: tuple[Callback, ...] = (
                budget,
                MlflowCallback(uri, file.search.tracking.experiment),
                TablesCallback(run_folder, history.records),
                CheckpointCallback(checkpoints, keep.disk_bytes, history.records, keep.keep_top),
                progress,
            )
            gpus = file.search.resources.gpus_per_trial
            recorder = Recorder(search, journal, callbacks, history.records, gpus)
            recorder.start()
            outcome: SearchOutcome = "failed"
            try:
                outcome = _fit(
                    file, branches, budget, recorder, history, checkpoints.url, concurrent
                )
            except KeyboardInterrupt:
                outcome = "stopped"
            except Exception as error:
                outcome = "stopped" if storage_failure(error) else "failed"
                raise
            finally:
                records = recorder.finish(outcome)
            if journal.failure is not None:
                raise journal.failure
    finally:
        journal.close()
    figures(search, records, run_folder)
    return SearchResult(search, records, outcome, run_folder, uri, budget.reason(), checkpoints.url)


def _measure_zero_shot(
    run_folder: Path, file: SearchFile, journal: Journal, console: Console
) -> SearchRecord:
    """What the search is after; the zero-shot model is evaluated once."""
    zero_shot = read_history(run_folder).zero_shot
    if zero_shot is None:
        if file.trial.data.root != EMBEDDED:  # or hours may pass without a word
            console.print("zero-shot  starts once the images are in the machine's cache")
        zero_shot = _zero_shot_on_cluster(file.trial, file.search.resources)
        journal.zero_shot(zero_shot)
    return search_record(file, run_folder, zero_shot, journal.run_id)


def _fit(
    file: SearchFile,
    branches: Sequence[Branch],
    budget: Budget,
    recorder: Recorder,
    history: History,
    checkpoints: str,
    concurrent: int,
) -> SearchOutcome:
    """Run Tune's loop; `stopped` where it was interrupted."""
    search = file.search
    references: dict[str, dict[str, Any]] = {
        name: file.reference_config(name).model_dump(mode="json") for name in search.references
    }
    train = trainable(
        file.trial.model_dump(mode="json"),
        references,
        checkpoints,
        search.resources.per_trial(),
    )
    with tune_workarounds():
        create_tuner(train, file, branches, budget, recorder, history, concurrent).fit()
    running = any(record.outcome == "running" for record in recorder.records.values())
    return "stopped" if running and budget.over() is None else "finished"


def _zero_shot_on_cluster(trial: TrialConfig, resources: ResourcesConfig) -> dict[str, float]:
    """The validation figures of the zero-shot model, from where the trials' hardware is."""
    remote = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
    try:
        metrics: dict[str, float] = ray.get(remote(zero_shot_metrics).remote(trial))
    except ConfigError as error:  # as Ray tells it: a page of where
        raise root_cause(error) from None
    return metrics


def zero_shot_metrics(trial: TrialConfig) -> dict[str, float]:
    """The metrics of a trial before its first step."""
    return start(trial).evaluate("val", load_split(trial, "val"))
