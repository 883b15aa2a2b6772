"""The names of files and folders of a run: each is composed here alone.

<run folder>/
    search.yaml  environment.json  journal.jsonl  journal.lock  report/index.html
    control/<order>.json
    confirm/journal.jsonl  confirm/predictions/<training>.parquet
<checkpoint root>/train/train-<trial>/
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trainers.data.store import url_of

CONFIG_FILE: Final = "search.yaml"
JOURNAL_FILE: Final = "journal.jsonl"
CONFIRM_FOLDER: Final = "confirm"
"""The run folder of the confirmation, in that of the search."""
PREDICTIONS_FOLDER: Final = "predictions"
"""Folder in that of the confirmation: a Parquet file for each training, with a row for each image
of the test splits, see `trainers.evaluation.predictions`."""
REPORT_FOLDER: Final = "report"
TRAIN_FOLDER: Final = "train"
"""Folder of all trials, below a checkpoint root."""


def page_path(run_folder: Path) -> Path:
    """The page of a run."""
    return run_folder / REPORT_FOLDER / "index.html"


def results_path(run_folder: Path) -> Path:
    """The journal of the confirmation of a search."""
    return run_folder / CONFIRM_FOLDER / JOURNAL_FILE


def predictions_path(run_folder: Path, training: str) -> Path:
    """The file of a training's predictions on the test splits, by its name in the journal."""
    return run_folder / CONFIRM_FOLDER / PREDICTIONS_FOLDER / f"{training}.parquet"


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
