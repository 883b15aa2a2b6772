"""Names of the folders in which the checkpoints of a run lie, see `tuning.checkpoints.files`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trainers.data.storage import url_of

TRAIN_FOLDER: Final = "train"
"""Folder of all trials, below a home."""
TRIAL_PREFIX: Final = "train-"


def checkpoint_home(run_folder: Path, storage: str | None, name: str, run_id: str) -> str:
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
    return f"{TRIAL_PREFIX}{trial_id}"
