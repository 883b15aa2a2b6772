"""Run folders: created for a new search, and read back with configuration and all trials."""

from __future__ import annotations

import itertools
import json
import logging
import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from trainers.config import TrialConfig
from trainers.data.store import Store, open_store, url_of
from trainers.errors import ConfigError, listed, suggestion
from tuning.config.objectives import nll_of
from tuning.config.schema import SearchFile
from tuning.config.validation import load_recorded
from tuning.runs.environment import ENVIRONMENT_FILE, environment, package_version
from tuning.runs.history import JOURNAL_FILE, History, read_history
from tuning.runs.journal import is_running
from tuning.runs.records import SearchRecord, TrialRecord

_warn_once = cache(logging.getLogger(__name__).warning)

RUNS = Path("runs")
"""The default of `search.storage`."""
CONFIG_FILE = "search.yaml"
CONFIRM_FOLDER = "confirm"
"""The run folder of the confirmation, in that of the search."""
TRAIN_FOLDER: Final = "train"
"""Folder of all trials, below a checkpoint root."""


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run folder."""

    folder: Path
    file: SearchFile
    history: History
    unknown: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Keys of `search.yaml` that this version does not know, with their values."""

    @property
    def checkpoint_root(self) -> str:
        """The folder or URL that contains all checkpoints of the run."""
        storage = self.file.search.checkpoints.storage
        return checkpoint_root_of(self.folder, storage, self.file.search.name, self.history.run_id)

    @property
    def checkpoints(self) -> Store:
        """The folder of all trials' checkpoints.

        Raises:
            StorageFailed: it cannot be reached.
        """
        return open_store(url_of(self.checkpoint_root, TRAIN_FOLDER))

    @property
    def search(self) -> SearchRecord:
        """The search of the run."""
        found, folder = self.history, self.folder
        if found.zero_shot is None:
            hint = found.damage or ("wait" if is_running(folder) else "resume it")
            problem = "the zero-shot model has not been evaluated yet"
            raise ConfigError(problem, source=folder, hint=hint)
        search = search_record(self.file, folder, found.zero_shot, found.run_id, found.used_ood)
        return replace(search, damage=found.damage, ended_by=found.ended_by)


def checkpoint_root_of(run_folder: Path, storage: str | None, name: str, run_id: str) -> str:
    """Folder or URL of all checkpoints of a run.

    Args:
        storage: `search.checkpoints.storage`.
        name: of the search. The run folder may be moved, and then has another name.
        run_id: from the journal; distinguishes runs of the same name.
    """
    if storage is None:
        return str(run_folder)
    return url_of(storage, f"{name}-{run_id}")


def trial_path(trial_id: str) -> str:
    """Name of a trial's folder."""
    return f"train-{trial_id}"


def find_run(folder: str | Path) -> Path:
    """The run folder of a path, or of the name of a run in `runs/` or `job_runs()`."""
    path = Path(folder).expanduser()
    places = (Path(), RUNS) if path.exists() else (Path(), *places_of_runs())
    found = (place / path for place in places)
    return next((run for run in found if (run / CONFIG_FILE).is_file()), path)


def word_for(run: Path) -> str:
    """What to type for a run folder: its name where that finds it, else its path."""
    is_named = find_run(run.name).resolve() == run.resolve()
    return shlex.quote(run.name if is_named else str(run))


def places_of_runs() -> list[Path]:
    """`runs/`, and the folder of the runs of Ray jobs if there is one."""
    with suppress(RuntimeError, OSError):  # this user has no home, or cannot read it
        if (of_jobs := job_runs()).is_dir():
            return [RUNS, of_jobs]
    return [RUNS]


def job_runs(storage: str | Path = RUNS) -> Path:
    """The folder of `search.storage` in a Ray job on this machine: by default `~/lipsum-tune/runs`.

    The working directory of a job is a copy, which Ray deletes.
    """
    return Path.home() / "lipsum-tune" / Path(storage).expanduser()


def runs_in(folder: Path) -> list[Path]:
    """All run folders in a folder, the one that was written to last first."""
    found = [file.parent for file in folder.glob(f"*/{CONFIG_FILE}")]
    return sorted(found, key=last_written, reverse=True)


def last_written(run: Path) -> float:
    """Unix time of the last event of a run."""
    journal = run / JOURNAL_FILE
    return (journal if journal.is_file() else run / CONFIG_FILE).stat().st_mtime


def load_run(folder: str | Path, whole: bool = False) -> RunFolder:
    """Read a run folder, or the one that `find_run` finds. The run may be in progress.

    Its data need not be reachable.

    Args:
        whole: refuse a damaged journal, as a resume does. Otherwise the log names what is missing.
    """
    folder = find_run(folder)
    config = folder / CONFIG_FILE
    if not config.is_file():
        problem = f"not a run folder: {CONFIG_FILE} not found"
        known = [run.name for place in places_of_runs() for run in runs_in(place)]
        hint = suggestion(folder.name, known) or f"there are no runs in {RUNS.absolute()}"
        raise ConfigError(problem, source=folder, hint=hint)
    live = is_running(folder)
    history = read_history(folder, live, whole)
    if live and history.outcome is None:  # a resumed session continues stopped trials first
        records = [
            replace(record, outcome="running") if record.outcome == "stopped" else record
            for record in history.records
        ]
        history = replace(history, records=tuple(records))
    file, unknown = load_recorded(config)
    if unknown:
        keys = listed(sorted(unknown))
        _warn_once(f"{config.resolve()}: keys that this version does not know are skipped: {keys}")
    return RunFolder(folder.resolve(), file, history, unknown=unknown)


def config_of(file: SearchFile, record: TrialRecord) -> TrialConfig:
    """The configuration of a trial or reference."""
    if record.kind == "reference":
        return file.reference_config(record.trial_id)
    return file.trial_config(record.params)


def search_record(
    file: SearchFile,
    folder: Path,
    zero_shot: dict[str, float],
    run_id: str = "",
    used_ood: bool = False,
) -> SearchRecord:
    """The record of a search in a run folder."""
    return SearchRecord(
        name=folder.name,
        total_steps=file.trial.steps,
        budget_trials=file.most_trials,
        objectives=file.objectives,
        constraints=file.constraints(zero_shot),
        id_domain=file.trial.data.id_domain,
        ood_domains=file.trial.data.ood_domains,
        zero_shot=zero_shot,
        config=file.summary(),
        run_folder=folder,
        spaces=file.spaces,
        run_id=run_id,
        nll=nll_of(file.objectives),
        used_ood=used_ood,
    )


def create_run_folder(file: SearchFile, storage: Path) -> Path:
    """Create the folder of a new search with its configuration; a name in use gets a number.

    A failure leaves nothing behind.

    Args:
        storage: the folder of runs, absolute.
    """
    described = json.dumps(environment(file.trial), indent=2) + "\n"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        name = file.search.name
        for number in itertools.count(1):
            folder = storage / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                break
        try:
            (folder / "report").mkdir()
            (folder / ENVIRONMENT_FILE).write_text(described, encoding="utf-8")
            write_config(folder, file)  # last: a folder without it is no run
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(str(error), key="search.storage", value=file.search.storage) from None
    return folder


def runs_named(storage: Path, name: str) -> list[Path]:
    """The run folders of searches of this name in a folder, in the order of their numbers."""
    ours = re.compile(rf"{re.escape(name)}(?:-([0-9]+))?")
    folders = [file.parent for file in storage.glob(f"*/{CONFIG_FILE}")]
    numbered = [(ours.fullmatch(folder.name), folder) for folder in folders]
    return [f for _, f in sorted((int(match[1] or 1), f) for match, f in numbered if match)]


def write_config(folder: Path, file: SearchFile) -> None:
    """Write the resolved configuration and the version of this package in one piece."""
    values = {"version": package_version("lipsum-tune"), **file.model_dump(mode="json")}
    earlier = values["search"]["warm_start"]  # the search may be resumed in another folder
    earlier["runs"] = [str(find_run(run).absolute()) for run in earlier["runs"]]
    with open_store(folder).write(CONFIG_FILE) as stream:
        stream.write(yaml.safe_dump(values, sort_keys=False).encode())
