"""Go on with a search, or extend it: what may differ from the run folder's configuration.

A resume finishes the search as it was set up, so nothing may change that its trials measure or
that its sampler has learned from, the data included; where these lie may. Extending a search is
another decision: its space may be moved or narrowed or get more methods, and what lies outside of
the new space is kept in the tables but forgotten by the sampler.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from trainers.data.data_root import resolve_root
from trainers.errors import ConfigError
from tuning.config.schema import ELSEWHERE, SearchFile
from tuning.config.validation import load_config
from tuning.execution.run_search import SearchResult, continue_search, run_search
from tuning.runs.environment import check_same_data
from tuning.runs.journal import JOURNAL_FILE, is_running
from tuning.runs.run_folder import CONFIG_FILE, load_run, runs_named, write_config

RESUMABLE = (
    "search.budget",
    "search.resources",
    "search.tracking",
    "search.checkpoints.disk_gb",
    "search.checkpoints.keep_top",
    *(f"trial.data.{key}" for key in ELSEWHERE),
)
"""Keys that a resume may change: none of them alters what a trial measures."""
EXTENDABLE = (*RESUMABLE, "search.space", "search.sampler", "search.scheduler")


def resume_search(
    folder: Path,
    overrides: Iterable[str] = (),
    *,
    extend: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> SearchResult:
    """Go on after an interruption, from what the run folder holds.

    Args:
        folder: a run folder.
        overrides: `key=value`, of the keys above.
        extend: allow for another space, sampler or scheduler too.
        address: of a Ray cluster, as in `run_search`.
        console: for the display of progress.

    Raises:
        ConfigError: no run folder, one of another version, one that another process is running,
            a key that must not change, or data that have changed.
    """
    before = load_run(folder)
    if is_running(folder):  # its search.yaml must stay what it runs with
        raise ConfigError(f"{folder}: another process is running this search")
    file = load_config(folder / CONFIG_FILE, list(overrides))
    for key, (was, now) in _changes(before.file, file, EXTENDABLE if extend else RESUMABLE).items():
        raise ConfigError(
            f"--set {key}: it was {was!r} in this search and cannot become {now!r}{_hint(key)}"
        )
    _check_untouched(before.history.fingerprints, file, extend)
    resolve_root(file.trial.data.root, progress=True)
    check_same_data(before.folder, file.trial.data)
    if file != before.file:
        write_config(folder, file)
    return continue_search(before.folder, file, address=address, console=console)


def search_or_resume(
    file: SearchFile, *, address: str | None = None, console: Console | None = None
) -> SearchResult:
    """Go on with the run of this name and configuration; begin it where there is none.

    For whoever submits the same command again after an interruption: a job of Ray, Kubernetes or
    Slurm. What a resume may change may differ. A run of the same name with another configuration is
    left alone, and the new one gets a number.

    Raises:
        ConfigError: what `run_search` and `resume_search` refuse.
    """
    folder = earlier_run(file)
    if folder is None:
        return run_search(file, address=address, console=console)
    if is_running(folder):
        raise ConfigError(f"{folder}: another process is running this search")
    write_config(folder, file)
    if (folder / JOURNAL_FILE).is_file():
        return resume_search(folder, address=address, console=console)
    return continue_search(folder, file, address=address, console=console)  # it never began


def earlier_run(file: SearchFile) -> Path | None:
    """The last run folder of this name and configuration, but for what a resume may change."""
    for folder in reversed(runs_named(file.search.storage, file.search.name)):
        if not _changes(load_config(folder / CONFIG_FILE, check=False), file, RESUMABLE):
            return folder
    return None


def identity(file: SearchFile) -> dict[str, object]:
    """Plain values, equal for configurations of which one may go on with a run of the other."""
    return _without(file, RESUMABLE)


def _changes(
    before: SearchFile, after: SearchFile, allowed: tuple[str, ...]
) -> dict[str, tuple[object, object]]:
    """The keys outside of the allowed ones that have another value than before, and both values."""
    was, now = _without(before, allowed), _without(after, allowed)
    return {
        key: (was.get(key), now.get(key))
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    }


def _without(file: SearchFile, keys: tuple[str, ...]) -> dict[str, object]:
    """All that a configuration says, under dotted keys, but for these and what is below them."""
    left_out = tuple(f"{key}." for key in keys)
    values = _flat(file.model_dump(mode="json"))
    return {key: value for key, value in values.items() if not f"{key}.".startswith(left_out)}


def _check_untouched(known: dict[str, str], file: SearchFile, extend: bool) -> None:
    """Raise where search.yaml itself was edited in what its trials have in common."""
    for key, fingerprint in file.fingerprints().items():
        if known.get(key, fingerprint) != fingerprint and not (extend and key == "search.space"):
            raise ConfigError(
                f"{CONFIG_FILE}: {key} is no longer what this search was run with{_hint(key)}"
            )


def _hint(key: str) -> str:
    if key.startswith(("search.space", "search.sampler", "search.scheduler")):
        return "; use `lipsum-tune extend` to go on with another one"
    if key == "search.checkpoints.storage":
        return ": its checkpoints would not be found"
    return "; start a new search, with this one in search.warm_start.runs"


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
