"""Run a search: Ray Tune over Ray Train trials, proposed by Optuna, recorded by the listeners."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
import yaml
from ray import tune
from rich.console import Console

from trainers.config import TrialConfig
from trainers.data.roots import resolve_root
from trainers.errors import ConfigError
from trainers.fine_tune import load_split, start
from tuning.config import ResourcesConfig, SearchFile
from tuning.environment import environment
from tuning.mlflow_callback import MlflowListener, default_tracking_uri
from tuning.progress import ProgressListener
from tuning.ray_session import concurrent_trials, ray_session
from tuning.recorder import Recorder
from tuning.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.report import figure
from tuning.results import TablesListener, best_trial
from tuning.schedulers import create_scheduler
from tuning.searcher import OptunaSearcher, create_study
from tuning.trainable import trainable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and where it is kept."""

    search: SearchRecord
    records: Sequence[TrialRecord]
    """Trials in the order of their proposal, references first."""
    outcome: SearchOutcome
    run_folder: Path
    tracking_uri: str

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
    """Run the search of a configuration to its end.

    Args:
        file: from `tuning.config.load_config`.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for the display of progress; by default the terminal's standard error.

    Raises:
        ConfigError: before anything runs: no such data, too few resources, MLflow out of reach.
    """
    console = console or Console(stderr=True)
    resolve_root(file.trial.data.root, progress=True)
    run_folder = create_run_folder(file)
    tracking_uri = file.search.tracking.uri or default_tracking_uri(run_folder.parent)
    with ray_session(address), ProgressListener(console) as progress:
        concurrent = concurrent_trials(file.search.resources)
        search = _record(file, run_folder)
        listeners = (
            MlflowListener(tracking_uri, file.search.tracking.experiment),
            TablesListener(run_folder),
            progress,
        )
        recorder = Recorder(search, listeners)
        recorder.start()
        outcome: SearchOutcome = "failed"
        try:
            outcome = _fit(file, run_folder, recorder, concurrent)
        except KeyboardInterrupt:
            outcome = "stopped"
        finally:
            records = recorder.finish(outcome)
    figure(search, records, run_folder / "report" / "id_vs_ood.png")
    return SearchResult(search, records, outcome, run_folder, tracking_uri)


def create_run_folder(file: SearchFile) -> Path:
    """A new folder for this search with its resolved configuration; a name in use gets a number.

    Raises:
        ConfigError: the folder cannot be written.
    """
    storage = _storage(file.search.storage)
    name, number = file.search.name, 1
    try:
        storage.mkdir(parents=True, exist_ok=True)
        while True:
            folder = storage / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        (folder / "report").mkdir()
        text = yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False)
        (folder / "search.yaml").write_text(text, encoding="utf-8")
        described = json.dumps(environment(file.trial), indent=2) + "\n"
        (folder / "environment.json").write_text(described, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"search.storage = {file.search.storage!r}: {error}") from None
    return folder


def _storage(configured: str) -> Path:
    """The folder of runs; a Ray job's working directory is a copy that Ray deletes again."""
    path = Path(configured).expanduser()
    if not path.is_absolute() and "RAY_JOB_ID" in os.environ and _in_packaged_directory():
        path = Path.home() / "lipsum-tune" / path
        logger.warning("a Ray job's working directory is temporary: runs are kept in %s", path)
    return path.resolve()


def _in_packaged_directory() -> bool:
    return "working_dir_files" in Path.cwd().parts


def _fit(file: SearchFile, run_folder: Path, recorder: Recorder, concurrent: int) -> SearchOutcome:
    """Run Tune's loop; `stopped` where it was interrupted."""
    search, steps = file.search, file.trial.steps
    references = search.references
    # The display is ours; Tune's own would repeat every failure, traceback and all, between it.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    searcher = OptunaSearcher(
        file.search_space(),
        partial(create_study, run_folder, run_folder.name, search.sampler, search.objective),
        search.objective,
        total_steps=steps,
        trials=search.budget.trials,
        references=references,
    )
    tuner = tune.Tuner(
        trainable(
            file.trial.model_dump(mode="json"),
            {name: file.reference_config(name).model_dump(mode="json") for name in references},
            run_folder / "train",
            search.resources.model_dump(exclude={"max_concurrent"}),
        ),
        tune_config=tune.TuneConfig(
            num_samples=search.budget.trials + len(references),
            max_concurrent_trials=concurrent,
            search_alg=searcher,
            scheduler=create_scheduler(search.scheduler, search.objective, steps),
            metric=search.objective.metric,
            mode=search.objective.mode,
            reuse_actors=False,  # with a scheduler that stops trials, Tune hangs on reused actors
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(run_folder), callbacks=[recorder], verbose=0
        ),
    )
    tuner.fit()
    running = any(record.outcome == "running" for record in recorder.records.values())
    return "stopped" if running else "finished"


def _record(file: SearchFile, run_folder: Path) -> SearchRecord:
    objective, data = file.search.objective, file.trial.data
    return SearchRecord(
        name=run_folder.name,
        total_steps=file.trial.steps,
        budget_trials=file.search.budget.trials,
        objective_metric=objective.metric,
        objective_mode=objective.mode,
        id_domain=data.id_domain,
        ood_domains=data.ood_domains,
        zero_shot=_zero_shot_on_cluster(file.trial, file.search.resources),
        config=file.model_dump(mode="json"),
        run_folder=run_folder,
        sees_ood=objective.metric.startswith(("ood_val/", "val/")),
    )


def _zero_shot_on_cluster(trial: TrialConfig, resources: ResourcesConfig) -> dict[str, float]:
    """The validation figures of the zero-shot model, from where the trials' hardware is."""
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(
        zero_shot_metrics
    )
    metrics: dict[str, float] = ray.get(task.remote(trial))
    return metrics


def zero_shot_metrics(trial: TrialConfig) -> dict[str, float]:
    """The metrics of a trial before its first step."""
    return start(trial).evaluate("val", load_split(trial, "val"))
