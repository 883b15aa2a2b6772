"""Run a search: Ray Tune runs the trials, Optuna proposes them, views follow them.

New, resumed and extended searches are the same: everything that the journal of the run folder
contains is passed to studies, budget and callbacks, and the rest is run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from optuna.samplers import BaseSampler
from rich.console import Console

from search_spaces import SearchSpace
from trainers.data.roots import domain_files
from trainers.data.schema import split_header
from trainers.data.store import open_root
from trainers.errors import ConfigError, validate
from trainers.evaluation.metrics import ID, MetricKey
from trainers.overrides import flat
from tuning.algorithms.samplers import LEAST_FINISHED, create_pruner
from tuning.algorithms.studies import Studies, create_studies
from tuning.algorithms.warm_start import Earlier, load_earlier, warm_start, warm_start_uses_ood
from tuning.checkpoints import KeptWeights
from tuning.config.schema import SchedulerConfig, SearchConfig, SearchFile
from tuning.config.validation import check_search, load_config
from tuning.execution.ray_session import runs_folder
from tuning.log.environment import seen_at_start
from tuning.log.folder import create_run_folder, find_run, write_config
from tuning.log.history import History, read_history
from tuning.log.journal import Journal, is_running
from tuning.log.orders import wanted_points
from tuning.log.paths import JOURNAL_FILE
from tuning.log.records import METHOD_KEY, SearchOutcome, TrialRecord
from tuning.log.resume import check_changes, earlier_run
from tuning.results.budget import larger_budget, nothing_left, num_begun
from tuning.results.goal import Goal, goal_of
from tuning.results.rules import saw_ood
from tuning.run import Run, load_file, read_confirmed
from tuning.session import SearchArguments, open_session
from tuning.session import SearchOptions as SearchOptions
from tuning.views.dashboard import DashboardView, open_storage
from tuning.views.follower import Follower
from tuning.views.formatting import near_chance, show_phase
from tuning.views.mlflow.client import TrackingError, tracking_uri
from tuning.views.mlflow.writer import MlflowView
from tuning.views.results import ResultsView

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What one call has run, and how it ended."""

    run: Run
    """With the trials of all sessions."""
    outcome: SearchOutcome
    tracking_uri: str
    ended_by: str | None = None
    """The budget that ended it, other than the number of trials. With the outcome `stopped`: too
    many trials in a row have failed."""

    @property
    def failed(self) -> list[TrialRecord]:
        """The trials that raised."""
        return [record for record in self.run.records if record.outcome == "failed"]


def run_search(
    config: SearchFile | str | Path,
    *,
    space: SearchSpace | None = None,
    **arguments: Unpack[SearchArguments],
) -> SearchResult:
    """Run a search to its end, in a new run folder.

    Args:
        config: a configuration, a YAML file, or the name of a ready configuration.
        space: replaces `search.space`.
        arguments: see `SearchArguments`.

    Raises:
        ConfigError: before anything runs: missing data, too few resources, MLflow not reachable.
        StorageFailed: run folder or checkpoints could not be written; the search can be resumed.
    """
    # One that was made or copied in Python has not been checked yet.
    file = check_search(config) if isinstance(config, SearchFile) else load_config(config)
    return start_search(*with_arguments(file, arguments, space))


def resume_search(
    folder: str | Path,
    overrides: Iterable[str] = (),
    *,
    trials: int | str | None = None,
    hours: float | str | None = None,
    gpu_hours: float | str | None = None,
    **arguments: Unpack[SearchArguments],
) -> SearchResult:
    """Continue a search from its run folder: interrupted, or with more trials, hours, a sampler.

    Args:
        overrides: `key=value`: budgets, resources, sampler, scheduler, location of the data.
        trials: number of trials, `30`, or `+8` in addition to those it has.
        hours: of wall clock in all, `4`, or `+1` for one more; `gpu_hours` likewise.
        arguments: see `SearchArguments`.

    Raises:
        ConfigError: not a run folder, or one that another process is running; a key that must not
            change; changed data.
    """
    with _opened(find_run(folder)) as (run, journal):
        budgets = larger_budget(run, trials=trials, hours=hours, gpu_hours=gpu_hours)
        file, _ = load_file(run.folder, [*overrides, *budgets], check=True)
        file, options = with_arguments(file, arguments)
        check_changes(run, file)
        if over := nothing_left(run.history, file):
            raise over.within(run.folder)
        return continue_search(run.folder, file, options, journal)


def search_or_resume(file: SearchFile, *, address: str | None = None) -> SearchResult:
    """Resume the run of this name and configuration, or start it if there is none.

    For jobs of Ray, Kubernetes or Slurm, which submit the same command again after an interruption.
    Keys of FREE may differ. A run of the same name with another configuration is left alone, and
    the new one gets a number.
    """
    options = SearchOptions(address=address)
    folder = earlier_run(file, runs_folder(file.search.storage))
    if folder is None:
        return start_search(file, options)
    if not (folder / JOURNAL_FILE).is_file():  # its first session was killed before it began
        return continue_search(folder, file, options)
    with _opened(folder) as (run, journal):
        check_changes(run, file)
        if over := nothing_left(run.history, file):
            uri = tracking_uri(file.search.tracking.uri, folder.parent)
            return SearchResult(run, "finished", uri, str(over))
        return continue_search(folder, file, options, journal)


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[Run, Journal]]:
    """A run that no other process runs, and its journal, which is read once and stays locked."""
    file, unknown = load_file(folder)
    if not (folder / JOURNAL_FILE).is_file():
        raise ConfigError(f"not a run folder: {JOURNAL_FILE} not found", source=folder)
    with closing(Journal(folder)) as journal:
        confirmed = read_confirmed(folder)
        yield Run(folder.resolve(), file, journal.history(), confirmed, unknown=unknown), journal


def with_arguments(
    file: SearchFile, arguments: SearchArguments, space: SearchSpace | None = None
) -> tuple[SearchFile, SearchOptions]:
    """Add arguments of `run_search` to the configuration, or to the options if they are objects."""
    objects: dict[str, Any] = {**arguments}
    given: dict[str, Any] = {} if space is None else {"space": space}
    sampler = objects.get("sampler")
    if sampler is not None and not isinstance(sampler, BaseSampler):
        given["sampler"] = {"name": sampler} if isinstance(sampler, str) else sampler
        del objects["sampler"]
    section = validate(SearchConfig, given, "arguments")
    changes = {key: getattr(section, key) for key in given}
    if isinstance(objects.get("storage"), str):
        changes["study_storage"] = objects.pop("storage")
    if changes:
        search = file.search.model_copy(update=changes)
        file = check_search(file.model_copy(update={"search": search}))
    return file, SearchOptions(**objects)


def start_search(file: SearchFile, options: SearchOptions) -> SearchResult:
    """Create a run folder and run the search in it. See `run_search`.

    A search that is refused leaves no folder. Once a trial may start, nothing removes it.
    """
    for run in load_earlier(file).values():
        if isinstance(run, ConfigError):  # before minutes of preparation
            raise run
    run_folder = create_run_folder(file, runs_folder(file.search.storage))
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        has_begun = True

    try:
        return continue_search(run_folder, file, options, on_begin=begin)
    except (ConfigError, TrackingError):
        if not has_begun and not _is_used(run_folder):
            shutil.rmtree(run_folder, ignore_errors=True)
        raise


def _is_used(run_folder: Path) -> bool:
    """Whether another process has found a new run folder, and runs or has run its search."""
    try:
        return is_running(run_folder) or bool(read_history(run_folder).records)
    except ConfigError:  # there is no journal yet, or no search can run on a disk without locks
        return (run_folder / JOURNAL_FILE).exists()


def continue_search(
    run_folder: Path,
    file: SearchFile,
    options: SearchOptions,
    journal: Journal | None = None,
    on_begin: Callable[[], object] = lambda: None,
) -> SearchResult:
    """Run the rest of a search in its run folder, once `check_changes` has passed.

    Args:
        journal: that of the run folder, if it is open.
        on_begin: called once nothing refuses the search any more.
    """
    if options.pruner is not None and len(file.objectives) > 1:
        problem = "no trial can be stopped early with several objectives"
        raise ConfigError(problem, key="pruner", value=type(options.pruner).__name__)
    uri = tracking_uri(file.search.tracking.uri, run_folder.parent)
    earlier = load_earlier(file)
    console = options.console or Console(stderr=True)
    show_phase(console, "Run folder", str(run_folder))
    again = f"lipsum-tune resume {run_folder}"
    objects = options.objects
    if objects:
        again = f"resume_search({str(run_folder)!r}, {', '.join(f'{key}=...' for key in objects)})"
    go_on = f"put that right, and `{again}` goes on from the last checkpoints"
    with open_session(run_folder, file, options, go_on, journal=journal) as session:
        # Preparation: everything that can be refused is checked before a trial starts.
        journal = session.journal
        before = journal.history()
        for name, kind in before.objects.items():
            if name not in objects:
                what = f"the {name} was an object, {kind}, and is now that of the configuration"
                show_phase(console, name.capitalize(), what)
        dashboard = dashboard_view(file, run_folder, before, options)
        has_begun = before.zero_shot is not None
        if not has_begun:
            journal.session_started(file.fingerprints(), objects)
        zero_shot = session.zero_shot(before)
        used_ood = before.used_ood or warm_start_uses_ood(file, earlier)
        goal = goal_of(file, zero_shot, used_ood)
        for line in _guesses(run_folder, file, zero_shot):
            show_phase(console, "Zero-shot", line)

        def begin() -> None:
            # Only then, so that a refused change leaves the run as it was.
            if has_begun:
                journal.session_started(file.fingerprints(), objects)
            if saw_ood(goal) and not before.used_ood:
                journal.used_ood()  # later sessions may lack the earlier runs
            write_config(run_folder, file)
            on_begin()

        history = journal.history()  # with the time of the zero-shot model
        studies = prepare_studies(
            goal, file, history, options, console, earlier, session.concurrent,
            journal.trial_events,
        )  # fmt: skip
        views = (
            ResultsView(session.checkpoints.url),
            MlflowView(uri),  # uploads them
            *dashboard,  # the client of a database may wait for minutes
        )
        weights = KeptWeights(session.checkpoints, file.search.checkpoints)
        follower = Follower(views, journal, weights)
        callbacks = (follower, session.progress, *options.callbacks)
        references = [TrialRecord(name, -1, "reference", {}) for name in file.search.references]
        ended, outcome = session.run(
            history, callbacks, fixed=references, studies=studies, begin=begin
        )
    run = Run(run_folder, file, ended, read_confirmed(run_folder))
    return SearchResult(run, outcome, uri, ended.ended_by or None)


def _guesses(run_folder: Path, file: SearchFile, zero_shot: Mapping[str, float]) -> Iterator[str]:
    """A line for each domain whose zero-shot accuracy may be that of a guess."""
    data, store = file.trial.data, open_root(file.trial.data.root)
    for domain, images in (seen_at_start(run_folder, "val_images") or {}).items():
        key = MetricKey("val", ID if domain == data.id_domain else domain, "acc")
        acc = zero_shot.get(str(key))
        if acc is not None and images:
            names = split_header(store, domain_files(store, domain, "val")).class_names
            if line := near_chance(domain, acc, images, len(names)):
                yield line


def prepare_studies(
    goal: Goal,
    file: SearchFile,
    history: History,
    options: SearchOptions,
    console: Console,
    earlier: Earlier,
    concurrent: int = 1,
    trial_events: Sequence[tuple[str, TrialRecord]] = (),
) -> Studies:
    """The Optuna studies of a session: trials of the journal, earlier searches, initial points."""
    sampler = options.sampler or file.search.sampler
    scheduler = options.pruner or file.search.scheduler
    pruner = partial(create_pruner, scheduler, file.trial.steps, file.trial.eval.every)
    name = scheduler.name if isinstance(scheduler, SchedulerConfig) else type(scheduler).__name__
    studies = create_studies(
        goal, file.spaces, sampler, file.most_trials, history.run_id, pruner, name
    )
    is_new = not history.records
    for line in warm_start(studies.studies, file, goal, earlier, strict=is_new):
        if is_new or "not used" in line:
            show_phase(console, "Warm start", line)
    for study in studies.studies:  # earlier results replace a prior, but not points that are given
        own = file.search.space.initial_points or ()
        study.is_warm &= not any(point.get(METHOD_KEY) == study.method for point in own)
    studies.enqueue_first_points()
    for reference in file.search.references:
        config = file.reference_config(reference)
        studies.take_reference(reference, flat(config.model_dump(mode="json")))
    for point in wanted_points(history):
        studies.enqueue(point)
    studies.replay(trial_events)
    show_phase(console, "Sampler", studies.describe())
    if name != "none":
        show_phase(console, "Stopping", f"{name}, once {LEAST_FINISHED} trials have finished")
    left = file.most_trials - num_begun(history.records)
    if studies.num_waiting and left > 0:
        given = min(left, studies.num_waiting)
        what = f"{given} of {left} trials are first points"
        what = f"{what}, the sampler proposes {left - given}"
        if given == left:
            what += " (lower search.prior.points)"
        if (blind := min(left, concurrent) - given) > 0:
            what += f", {blind} of them at random before the first result"
        show_phase(console, "Points", what)
    return studies


def dashboard_view(
    file: SearchFile, run_folder: Path, history: History, options: SearchOptions
) -> list[DashboardView]:
    """The study for dashboards. A resumed search does without a storage that it cannot reach."""
    try:
        storage = options.storage or open_storage(run_folder, file.search.study_storage)
    except ConfigError as error:
        if not history.records:
            raise
        logger.warning("the Optuna study of the dashboard is not written: %s", error)
        return []
    return [DashboardView(storage)]
