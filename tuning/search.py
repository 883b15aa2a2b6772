"""Run a search: Ray Tune runs the trials, Optuna proposes them, callbacks follow them.

New, resumed and extended searches are the same: everything that the journal of the run folder
contains is passed to studies, scheduler, budget and callbacks, and the rest is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from rich.console import Console

from search_spaces import SearchSpace
from trainers.data.data_root import EMBEDDED, resolve_root
from trainers.data.storage import open_store, url_of
from trainers.errors import ConfigError, validate
from tuning.algorithms.budget import Budget
from tuning.algorithms.optuna_storage import open_storage, quiet_optuna
from tuning.algorithms.samplers import check_sampler
from tuning.algorithms.studies import Studies, create_studies
from tuning.algorithms.warm_start import Earlier, load_earlier, warm_start, warm_start_uses_ood
from tuning.checkpoints.files import TRAIN_FOLDER, checkpoint_home
from tuning.checkpoints.retention import CheckpointCallback
from tuning.checkpoints.storage_check import check_nodes
from tuning.config.objectives import sampler_objectives
from tuning.config.schema import SamplerConfig, SearchConfig, SearchFile
from tuning.config.validation import check_search, check_settings, load_config
from tuning.execution.ray_errors import resumable, storage_failure
from tuning.execution.ray_session import concurrent_trials, ray_session, runs_folder
from tuning.execution.ray_watch import watched_ray
from tuning.execution.signals import restored_process
from tuning.execution.trainable import trainable
from tuning.execution.tune_runner import run_trials
from tuning.execution.zero_shot import zero_shot_metrics
from tuning.runs.callbacks import Callback
from tuning.runs.journal import History, Journal, is_running, read_history
from tuning.runs.recorder import Recorder
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.runs.run_folder import (
    LoadedRun,
    create_run_folder,
    search_record,
    write_config,
)
from tuning.security.databases import check_drivers
from tuning.views.callback import ResultsCallback
from tuning.views.formatting import points_line, show_phase
from tuning.views.mlflow.callback import MlflowCallback
from tuning.views.mlflow.client import TrackingError, tracking_uri
from tuning.views.progress import ProgressCallback

_ARGUMENTS = "arguments"
"""Source of a mistake in what a caller passes."""


@dataclass(frozen=True, repr=False)
class SearchResult(LoadedRun):
    """The run folder of a search that has ended, and how it ended."""

    outcome: SearchOutcome
    tracking_uri: str
    ended_by: str | None = None
    """The budget that ended it, other than the number of trials. With the outcome `stopped`: too
    many trials in a row have failed."""

    def __repr__(self) -> str:
        best, metric = self.best, self.search.objectives[0].metric
        chosen = f", best {best.trial_id}: {metric} {best.record.last(metric):.4g}" if best else ""
        trials = sum(record.kind == "trial" for record in self.history.records)
        what = f"{self.search.name}: {self.outcome}, {trials} trials{chosen}"
        return f"<SearchResult {what}, {self.folder}>"

    @property
    def failed(self) -> list[TrialRecord]:
        """The trials that raised."""
        return [record for record in self.history.records if record.outcome == "failed"]


@dataclass(frozen=True)
class SearchOptions:
    """What a caller can pass to a search beside its configuration, see `run_search`."""

    callbacks: Sequence[Callback] = ()
    sampler: BaseSampler | None = None
    storage: BaseStorage | None = None
    address: str | None = None
    console: Console | None = None
    trainable: Callable[[str, Any], Any] = trainable
    """Makes what Ray Tune runs for each trial. Tests replace it."""


def run_search(
    config: SearchFile | str | Path,
    *,
    space: SearchSpace | None = None,
    callbacks: Sequence[Callback] = (),
    sampler: BaseSampler | SamplerConfig | str | None = None,
    storage: BaseStorage | str | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> SearchResult:
    """Run a search to its end, in a new run folder.

    Args:
        config: a configuration, a YAML file, or the name of a ready configuration.
        space: replaces `search.space`.
        sampler: replaces `search.sampler`: its name, a configuration, or a sampler of Optuna. An
            object is not kept in the run folder; pass it again to `resume_search`.
        storage: replaces `search.study_storage`: a URL, or a storage of Optuna.
        callbacks: called after the callbacks of the search itself.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for the display of progress; by default the standard error.

    Raises:
        ConfigError: before anything runs: missing data, too few resources, MLflow not reachable.
        StorageFailed: run folder or checkpoints could not be written; the search can be resumed.
    """
    file = config if isinstance(config, SearchFile) else load_config(config)
    return start_search(
        *with_options(file, callbacks, sampler, storage, address, console, space=space)
    )


def with_options(
    file: SearchFile,
    callbacks: Sequence[Callback],
    sampler: BaseSampler | SamplerConfig | str | None,
    storage: BaseStorage | str | None,
    address: str | None,
    console: Console | None,
    *,
    space: SearchSpace | None = None,
) -> tuple[SearchFile, SearchOptions]:
    """Sort arguments into those of the configuration, and objects."""
    given: dict[str, Any] = {} if space is None else {"space": space}
    if sampler is not None and not isinstance(sampler, BaseSampler):
        given["sampler"] = {"name": sampler} if isinstance(sampler, str) else sampler
        sampler = None
    section = validate(SearchConfig, given, _ARGUMENTS)
    changes = {key: getattr(section, key) for key in given}
    if isinstance(storage, str):
        changes["study_storage"], storage = storage, None
    if changes:
        search = file.search.model_copy(update=changes)
        file = file.model_copy(update={"search": search})
        (check_settings if space is None else check_search)(file)
    return file, SearchOptions(callbacks, sampler, storage, address, console)


def start_search(file: SearchFile, options: SearchOptions) -> SearchResult:
    """Create a run folder and run the search in it. See `run_search`."""
    for run in load_earlier(file).values():
        if isinstance(run, ConfigError):  # before minutes of preparation
            raise run
    resolve_root(file.trial.data.root, progress=True)
    run_folder = create_run_folder(file, runs_folder(file.search.storage))
    try:
        return continue_search(run_folder, file, options)
    except (ConfigError, TrackingError):
        if not _has_begun(run_folder):
            shutil.rmtree(run_folder, ignore_errors=True)
        raise


def _has_begun(run_folder: Path) -> bool:
    """Whether a trial has started, or another process has found the folder and runs the search."""
    try:
        return is_running(run_folder) or bool(read_history(run_folder).records)
    except ConfigError:  # there is no journal yet, or no search can run on a disk without locks
        return False


def continue_search(run_folder: Path, file: SearchFile, options: SearchOptions) -> SearchResult:
    """Run the rest of a search in its run folder. `tuning.runs.resume` checks what has changed.

    Raises:
        ConfigError: before anything runs; among others, another process is running this search.
        StorageFailed: run folder or checkpoints could not be written; the search can be resumed.
    """
    if options.sampler is not None:
        objectives = sampler_objectives(file.search.sampler.metric, file.objectives)
        with quiet_optuna():
            check_sampler(options.sampler, file.search_space(), len(objectives))
    resolve_root(file.trial.data.root, progress=True)
    uri = tracking_uri(file.search.tracking.uri, run_folder.parent)
    check_drivers({"search.tracking.uri": uri, "search.study_storage": file.search.study_storage})
    # The journal holds the lock of the run folder, so nothing is written there before.
    go_on = _how_to_resume(run_folder)
    with restored_process(), resumable(go_on), closing(Journal(run_folder)) as journal:
        return _run_session(run_folder, file, journal, uri, options)


def _how_to_resume(run_folder: Path) -> str:
    return (
        f"put that right, and `lipsum-tune resume {run_folder}` goes on from the last checkpoints"
    )


def _run_session(
    run_folder: Path, file: SearchFile, journal: Journal, uri: str, options: SearchOptions
) -> SearchResult:
    earlier = load_earlier(file)
    console = options.console or Console(stderr=True)
    show_phase(console, "Run folder", str(run_folder))
    keep, tracking = file.search.checkpoints, file.search.tracking
    with (
        ray_session(options.address, console=console) as is_own_ray,
        watched_ray(_how_to_resume(run_folder)) as watch,
        quiet_optuna(),
        closing(ProgressCallback(console, journal.now)) as progress,
    ):
        # Preparation: everything that can be refused is checked before a trial starts.
        home = checkpoint_home(run_folder, keep.storage, file.search.name, journal.run_id)
        check_nodes(file, home)
        concurrent = concurrent_trials(file.search.resources)
        checkpoints = open_store(url_of(home, TRAIN_FOLDER))
        before = read_history(run_folder)
        journal.session_started(before.fingerprints or file.fingerprints())
        zero_shot = before.zero_shot
        if zero_shot is None:
            # The cache of images may take hours for large data sets.
            cached = "" if file.trial.data.root == EMBEDDED else ", once the images are cached"
            show_phase(console, "Zero-shot", f"evaluating {file.trial.model.name}{cached}")
            zero_shot = zero_shot_metrics(file.trial, file.search.resources, here=is_own_ray)
            journal.zero_shot(zero_shot)
        used_ood = before.used_ood or warm_start_uses_ood(file, earlier)
        search = search_record(file, run_folder, zero_shot, journal.run_id, used_ood)
        if search.sees_ood and not before.used_ood:
            journal.used_ood()  # later sessions may have another sampler, or not find earlier runs

        history = read_history(run_folder)
        progress.earlier_seconds = history.seconds
        studies = prepare_studies(search, file, history, options, console, earlier)
        budget = Budget(file.search.budget, search, history, journal.now)
        callbacks = (
            budget,
            ResultsCallback(run_folder, history.records, checkpoints=checkpoints.url),
            MlflowCallback(uri, tracking.experiment, tracking.metrics == "all"),  # uploads them
            CheckpointCallback(checkpoints, keep.disk_bytes, history.records, keep.keep_top),
            progress,
            *options.callbacks,
        )
        gpus = file.search.resources.gpus_per_trial
        recorder = Recorder(search, journal, callbacks, history.records, gpus, studies, watch.check)
        show_phase(console, "Trials", f"starting workers for {concurrent} at once")

        def announce(line: str) -> None:
            console.print(line, soft_wrap=True, highlight=False)

        def interrupted() -> None:
            progress.is_ending = True
            show_phase(console, "Ctrl-C", "ending the trials; press it again not to wait for them")

        watch.record_end = lambda: recorder.finish("stopped")
        outcome: SearchOutcome = "failed"
        try:
            recorder.start()
            # Only now, so that a refused change leaves a run that resumes as it was.
            write_config(run_folder, file)
            if before.fingerprints not in ({}, file.fingerprints()):
                journal.session_started(file.fingerprints())
            train = options.trainable(checkpoints.url, file.search.resources)
            outcome = run_trials(
                train, file, studies, budget, recorder, history, concurrent, announce, interrupted
            )
        except KeyboardInterrupt:
            outcome = "stopped"
        except Exception as error:
            outcome = "stopped" if watch.lost or storage_failure(error) else "failed"
            raise
        finally:
            ended = recorder.finish(outcome)
        if failure := journal.failure or watch.lost:
            raise failure
    return SearchResult(run_folder, file, ended, outcome, uri, budget.reason())


def prepare_studies(
    search: SearchRecord,
    file: SearchFile,
    history: History,
    options: SearchOptions,
    console: Console,
    earlier: Earlier,
) -> Studies:
    """The Optuna studies of a session: trials of the journal, earlier searches, initial points.

    Raises:
        ConfigError: the storage cannot be used, or an earlier search cannot.
    """
    storage = options.storage or open_storage(search.run_folder, file.search.study_storage)
    sampler = options.sampler or file.search.sampler
    space = file.search_space()
    studies = create_studies(search, space, sampler, storage, search.run_id, history.records)
    is_new = not history.records
    for line in warm_start(studies.studies, file, search, earlier, strict=is_new):
        if is_new or "not used" in line:
            show_phase(console, "Warm start", line)
    given = file.search.space.has_initial_points
    studies.enqueue_initial_points([s.method for s in studies.studies if not given(s.method)])
    show_phase(console, "Sampler", studies.describe())
    left = search.budget_trials - sum(record.kind == "trial" for record in history.records)
    if studies.num_waiting and left > 0:
        show_phase(console, "Points", points_line(left, studies.num_waiting))
    return studies
