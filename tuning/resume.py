"""Resume a search, and what may change when that is done.

Nothing may change that affects what its trials measure, including the data; where the data are
stored may change. Trials, hours and the sampler are others' business: a resumed search may get
more of them, or another one. Another space is another search, with this one as its warm start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from ray.tune import Callback as TuneCallback
from rich.console import Console

from trainers.errors import ConfigError
from tuning.config.recorded import FREE, check_followed, differences
from tuning.config.schema import SamplerConfig, SearchFile
from tuning.config.validation import load_recorded
from tuning.execution.ray_session import runs_folder
from tuning.runs.callbacks import Callback
from tuning.runs.environment import check_same_inputs
from tuning.runs.history import JOURNAL_FILE
from tuning.runs.remaining import larger_budget, nothing_left
from tuning.runs.run_folder import CONFIG_FILE, RunFolder, load_run, runs_named
from tuning.search import SearchOptions, SearchResult, continue_search, start_search, with_options
from tuning.views.mlflow.client import tracking_uri

logger = logging.getLogger(__name__)


def earlier_run(file: SearchFile, storage: Path) -> Path | None:
    """The last run of this name and configuration in a folder, apart from keys of FREE."""
    for folder in reversed(runs_named(storage, file.search.name)):
        try:
            earlier, unknown = load_recorded(folder / CONFIG_FILE)
        except ConfigError as error:  # of another version, or its plug-in is gone: not this search
            logger.warning("%s is not continued: %s", folder, error)
            continue
        keys = differences(earlier, file, unknown, FREE)
        if not keys:
            return folder
        logger.warning("%s is not continued, since it differs in %s", folder, ", ".join(keys))
    return None


def check_changes(run: RunFolder, file: SearchFile) -> None:
    """Check that a configuration measures what the earlier trials of a run measured."""
    check_followed(run.unknown, run.folder / CONFIG_FILE)
    for key, (was, now) in differences(run.file, file).items():
        problem = f"it was {was!r} in this search and must not change"
        raise ConfigError(problem, key=f"--set {key}", value=now, hint=_hint(key))
    known = run.history.fingerprints
    for key, fingerprint in file.fingerprints().items():
        if known.get(key, fingerprint) != fingerprint:  # search.yaml was edited
            problem = f"{key} differs from what this search was run with"
            raise ConfigError(problem, source=CONFIG_FILE, hint=_hint(key))
    check_same_inputs(run.folder, file.trial)


def _hint(key: str) -> str:
    if key == "search.checkpoints.storage":
        return "its checkpoints would not be found"
    return "start a new search, with this one in search.warm_start.runs"


def resume_search(
    folder: str | Path,
    overrides: Iterable[str] = (),
    *,
    trials: int | str | None = None,
    callbacks: Sequence[Callback] = (),
    sampler: BaseSampler | SamplerConfig | str | None = None,
    storage: BaseStorage | str | None = None,
    address: str | None = None,
    console: Console | None = None,
    tune_callbacks: Sequence[TuneCallback] = (),
    pruner: BasePruner | None = None,
) -> SearchResult:
    """Continue a search from its run folder: interrupted, or with more trials, hours, a sampler.

    Args:
        overrides: `key=value`: budgets, resources, sampler, scheduler, location of the data.
        trials: number of trials, `30`, or `+8` in addition to those it has.
        callbacks: this and all others as in `run_search`.

    Raises:
        ConfigError: not a run folder, or one that another process is running; a key that must not
            change; changed data.
    """
    loaded, overrides = load_run(folder, whole=True), list(overrides)
    run = loaded.folder
    overrides += larger_budget(loaded, trials=trials)
    file, _ = load_recorded(run / CONFIG_FILE, overrides, check=True)
    options = SearchOptions(
        callbacks=callbacks,
        address=address,
        console=console,
        tune_callbacks=tune_callbacks,
        pruner=pruner,
    )
    changed, given = with_options(file, options, None, sampler, storage)
    check_changes(loaded, changed)
    if over := nothing_left(loaded.history, changed):
        raise over.within(run)
    return continue_search(run, changed, given)


def search_or_resume(
    file: SearchFile, *, address: str | None = None, callbacks: Sequence[Callback] = ()
) -> SearchResult:
    """Resume the run of this name and configuration, or start it if there is none.

    For jobs of Ray, Kubernetes or Slurm, which submit the same command again after an interruption.
    Keys of FREE may differ. A run of the same name with another configuration is left alone, and
    the new one gets a number.
    """
    options = SearchOptions(callbacks=callbacks, address=address)
    folder = earlier_run(file, runs_folder(file.search.storage))
    if folder is None:
        return start_search(file, options)
    if (folder / JOURNAL_FILE).is_file():  # else its first session was killed before it began
        loaded = load_run(folder, whole=True)
        check_changes(loaded, file)
        if over := nothing_left(loaded.history, file):
            uri = tracking_uri(file.search.tracking.uri, folder.parent)
            return SearchResult(folder, file, loaded.history, "finished", uri, str(over))
    return continue_search(folder, file, options)
