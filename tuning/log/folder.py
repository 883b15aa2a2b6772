"""Run folders: created for a new search, and found by what a user types."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

import yaml

from trainers.config import TrialConfig
from trainers.data.store import open_store
from trainers.errors import ConfigError
from tuning.config.schema import SearchFile
from tuning.log.environment import ENVIRONMENT_FILE, environment, package_version
from tuning.log.paths import CONFIG_FILE, JOURNAL_FILE, REPORT_FOLDER
from tuning.log.records import TrialRecord

RUNS = Path("runs")
"""The default of `search.storage`."""


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


def config_of(file: SearchFile, record: TrialRecord) -> TrialConfig:
    """The configuration of a trial or reference."""
    if record.kind == "reference":
        return file.reference_config(record.trial_id)
    return file.trial_config(record.params)


def method_of(file: SearchFile, record: TrialRecord) -> str:
    """The fine-tuning method of a trial, or the name of a reference."""
    if record.kind == "reference":
        return record.trial_id
    return record.method or file.trial.method.name


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
            (folder / REPORT_FOLDER).mkdir()
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
