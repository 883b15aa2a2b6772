"""Resume or extend a search, and what may change when that is done.

A resume completes a search as it was configured. Nothing may change that affects what its trials
measure or what its sampler has learned, including the data; where the data are stored may change.
Extending a search is another decision: its space may be moved, narrowed, or get more methods.
Trials outside of the new space stay in the tables, but the sampler does not see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from ray.tune import Callback as TuneCallback
from rich.console import Console

from trainers.data.data_root import resolve_root
from trainers.errors import ConfigError
from trainers.overrides import flat
from tuning.config.schema import ELSEWHERE, SamplerConfig, SearchFile
from tuning.config.validation import load_config
from tuning.execution.ray_session import runs_folder
from tuning.runs.callbacks import Callback
from tuning.runs.environment import check_same_inputs
from tuning.runs.journal import JOURNAL_FILE
from tuning.runs.run_folder import CONFIG_FILE, load_run, runs_named
from tuning.search import (
    SearchOptions,
    SearchResult,
    continue_search,
    start_search,
    with_options,
)

RESUMABLE = (
    "search.budget",
    "search.resources",
    "search.tracking",
    "search.checkpoints.keep_top",
    *(f"trial.data.{key}" for key in ELSEWHERE),
)
"""Keys that a resume may change: none of them affects what a trial measures."""
EXTENDABLE = (
    *RESUMABLE,
    "search.space",
    "search.prior",
    "search.sampler",
    "search.scheduler",
)


def resume_search(
    folder: str | Path,
    overrides: Iterable[str] = (),
    *,
    callbacks: Sequence[Callback] = (),
    sampler: BaseSampler | None = None,
    storage: BaseStorage | None = None,
    address: str | None = None,
    console: Console | None = None,
    tune_callbacks: Sequence[TuneCallback] = (),
) -> SearchResult:
    """Continue an interrupted search from its run folder.

    The other arguments are those of `run_search`.

    Args:
        overrides: `key=value`: budgets, resources, location of the data (all: RESUMABLE).

    Raises:
        ConfigError: not a run folder, or one that another process is running; a key that must not
            change; changed data.
    """
    run = load_run(folder)
    file = load_config(run.folder / CONFIG_FILE, list(overrides))
    options = SearchOptions(callbacks, sampler, storage, address, console, tune_callbacks)
    return continue_from(run.folder, file, options)


def extend_search(
    folder: str | Path,
    overrides: Iterable[str] = (),
    *,
    trials: int | None = None,
    callbacks: Sequence[Callback] = (),
    sampler: BaseSampler | SamplerConfig | str | None = None,
    storage: BaseStorage | None = None,
    address: str | None = None,
    console: Console | None = None,
    tune_callbacks: Sequence[TuneCallback] = (),
) -> SearchResult:
    """Continue a search with more trials, or with another space, sampler or scheduler.

    The other arguments are those of `run_search`.

    Args:
        overrides: `key=value`: what a resume may change, and what is searched (all: EXTENDABLE).

    Raises:
        ConfigError: see `resume_search`.
    """
    run = load_run(folder)
    if trials is not None:
        existing = sum(record.kind == "trial" for record in run.history.records)
        wanted = max(existing, run.file.search.budget.trials) + trials
        overrides = [*overrides, f"search.budget.trials={wanted}"]
    file = load_config(run.folder / CONFIG_FILE, list(overrides))
    file, options = with_options(
        file, callbacks, sampler, storage, address, console, tune_callbacks
    )
    return continue_from(run.folder, file, options, extend=True)


def search_or_resume(
    file: SearchFile, *, address: str | None = None, console: Console | None = None
) -> SearchResult:
    """Resume the run of this name and configuration, or start it if there is none.

    For jobs of Ray, Kubernetes or Slurm, which submit the same command again after an interruption.
    Keys of RESUMABLE may differ. A run of the same name with another configuration is left alone,
    and the new one gets a number.

    Raises:
        ConfigError: see `run_search` and `resume_search`.
    """
    options = SearchOptions(address=address, console=console)
    folder = earlier_run(file, runs_folder(file.search.storage))
    if folder is None:
        return start_search(file, options)
    if (folder / JOURNAL_FILE).is_file():
        return continue_from(folder, file, options)
    return continue_search(folder, file, options)  # its first session was killed before it began


def earlier_run(file: SearchFile, storage: Path) -> Path | None:
    """The last run of this name and configuration in a folder, apart from keys of RESUMABLE."""
    for folder in reversed(runs_named(storage, file.search.name)):
        try:
            earlier = load_config(folder / CONFIG_FILE, check=False)
        except ConfigError:  # of another version, or its plug-in is gone: not this search
            continue
        if not _changes(earlier, file, RESUMABLE):
            return folder
    return None


def identity(file: SearchFile) -> dict[str, object]:
    """Plain values that are equal if one configuration may resume a run of the other."""
    return _without(file, RESUMABLE)


def continue_from(
    folder: Path, file: SearchFile, options: SearchOptions, *, extend: bool = False
) -> SearchResult:
    """Check the changes against the run folder, then run the rest of the search."""
    before = load_run(folder)
    for key, (was, now) in _changes(before.file, file, EXTENDABLE if extend else RESUMABLE).items():
        raise ConfigError(
            f"it was {was!r} in this search and must not change",
            key=f"--set {key}",
            value=now,
            hint=_hint(key),
        )
    # search.yaml itself may have been edited.
    known = before.history.fingerprints
    for key, fingerprint in file.fingerprints().items():
        if known.get(key, fingerprint) != fingerprint and not (extend and key == "search.space"):
            raise ConfigError(
                f"{key} differs from what this search was run with",
                source=CONFIG_FILE,
                hint=_hint(key),
            )
    resolve_root(file.trial.data.root, progress=True)
    check_same_inputs(before.folder, file.trial)
    return continue_search(before.folder, file, options)


def _changes(
    before: SearchFile, after: SearchFile, allowed: tuple[str, ...]
) -> dict[str, tuple[object, object]]:
    """The keys that differ and are not allowed to, with both values."""
    was, now = _without(before, allowed), _without(after, allowed)
    return {
        key: (was.get(key), now.get(key))
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    }


def _without(file: SearchFile, keys: tuple[str, ...]) -> dict[str, object]:
    """A configuration as dotted keys, without some sections.

    Earlier runs have their names only, since they may have been moved.
    """
    left_out = tuple(f"{key}." for key in keys)
    values = flat(file.model_dump(mode="json"))
    values["search.warm_start.runs"] = [Path(run).name for run in file.search.warm_start.runs]
    if file.search.scheduler.name != "none":  # a default, or that number in words
        first = file.search.scheduler.first_step(file.trial.steps, file.trial.eval.every)
        values["search.scheduler.grace_steps"] = first
    return {key: value for key, value in values.items() if not f"{key}.".startswith(left_out)}


def _hint(key: str) -> str:
    if key.startswith(("search.space", "search.prior", "search.sampler", "search.scheduler")):
        return "use `lipsum-tune extend` to continue with another one"
    if key == "search.checkpoints.storage":
        return "its checkpoints would not be found"
    return "start a new search, with this one in search.warm_start.runs"
