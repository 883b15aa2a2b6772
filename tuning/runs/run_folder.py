"""Run folders: made for a new search, and read back: configuration, purpose and all trials."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError
from tuning.checkpoints.files import TRAIN_FOLDER, checkpoint_home
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config
from tuning.runs.environment import ENVIRONMENT_FILE, environment
from tuning.runs.journal import History, is_running, read_history
from tuning.runs.records import SearchRecord

logger = logging.getLogger(__name__)

CONFIG_FILE = "search.yaml"


@dataclass(frozen=True)
class LoadedRun:
    """What a run folder holds."""

    folder: Path
    file: SearchFile
    history: History

    @property
    def home(self) -> str:
        """The folder or URL below which all its checkpoints lie."""
        storage = self.file.search.checkpoints.storage
        return checkpoint_home(self.folder, storage, self.file.search.name, self.history.run_id)

    @property
    def checkpoints(self) -> Store:
        """The folder of all trials' checkpoints.

        Raises:
            ConfigError: it does not answer.
        """
        return open_store(f"{self.home}/{TRAIN_FOLDER}")

    @property
    def search(self) -> SearchRecord:
        """What the search is after.

        Raises:
            ConfigError: it was interrupted before the zero-shot model was evaluated.
        """
        if self.history.zero_shot is None:
            raise ConfigError(f"{self.folder}: nothing has run yet; resume it first")
        return search_record(self.file, self.folder, self.history.zero_shot, self.history.run_id)


def load_run(folder: Path) -> LoadedRun:
    """The run of that folder, which need not be able to run here: its data may be elsewhere.

    Raises:
        ConfigError: no run is there, or one of another version.
    """
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise ConfigError(f"{folder}: no run folder, for it has no {CONFIG_FILE}")
    history = read_history(folder, live=is_running(folder))
    return LoadedRun(folder.resolve(), load_config(config, check=False), history)


def search_record(
    file: SearchFile, folder: Path, zero_shot: dict[str, float], run_id: str = ""
) -> SearchRecord:
    """What the search of that configuration is after.

    Raises:
        ConfigError: no trial can meet the constraints, now that the zero-shot figures are known.
    """
    return SearchRecord(
        name=folder.name,
        total_steps=file.trial.steps,
        budget_trials=file.search.budget.trials,
        objectives=file.objectives,
        constraints=file.constraints(zero_shot),
        id_domain=file.trial.data.id_domain,
        ood_domains=file.trial.data.ood_domains,
        zero_shot=zero_shot,
        config=file.summary(),
        run_folder=folder,
        run_id=run_id,
    )


def create_run_folder(file: SearchFile) -> Path:
    """A new folder for this search with its resolved configuration; a name in use gets a number.

    Raises:
        ConfigError: the folder cannot be written, or the data cannot be read; nothing is left.
    """
    described = json.dumps(environment(file.trial), indent=2) + "\n"
    try:
        folder = _new_folder(_storage(file.search.storage), file.search.name)
        try:
            (folder / "report").mkdir()
            write_config(folder, file)
            (folder / ENVIRONMENT_FILE).write_text(described, encoding="utf-8")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"search.storage = {file.search.storage!r}: {error}") from None
    return folder


def _new_folder(storage: Path, name: str) -> Path:
    storage.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = storage / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def runs_named(storage: str, name: str) -> list[Path]:
    """The run folders that searches of this name got, in their order."""
    ours = re.compile(rf"{re.escape(name)}(?:-([0-9]+))?")
    folders = [file.parent for file in _storage(storage).glob(f"*/{CONFIG_FILE}")]
    numbered = [(ours.fullmatch(folder.name), folder) for folder in folders]
    return [f for _, f in sorted((int(match[1] or 1), f) for match, f in numbered if match)]


def write_config(folder: Path, file: SearchFile) -> None:
    """Write the resolved configuration; a reader never sees half of it."""
    text = yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False)
    temporary = folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / CONFIG_FILE)


def _storage(configured: str) -> Path:
    """The folder of runs; a Ray job's working directory is a copy that Ray deletes again."""
    path = Path(configured).expanduser()
    if not path.is_absolute() and "RAY_JOB_ID" in os.environ and _in_packaged_directory():
        path = Path.home() / "lipsum-tune" / path
        logger.warning("a Ray job's working directory is temporary: runs are kept in %s", path)
    return path.resolve()


def _in_packaged_directory() -> bool:
    return "working_dir_files" in Path.cwd().parts
