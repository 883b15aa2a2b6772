"""What of a working directory goes along with a job: code and configurations, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.data.roots import EMBEDDED
from trainers.errors import ConfigError
from tuning.config import SearchFile
from tuning.config_layers import find_config

ALWAYS_EXCLUDED = (
    ".git/",
    "__pycache__/",
    ".*_cache/",
    "*.egg-info/",
    ".ipynb_checkpoints/",
    "node_modules/",
    "/data/",
    "/runs/",
    "mlruns/",
    "mlartifacts/",
    "mlflow.db",
    "*.arrow",
    "*.parquet",
    "*.tar",
    ".env",
    ".env.*",
)
"""As in a .gitignore, which Ray also goes by where there is one."""

_DEPTH = 2
"""Folders below the working directory in which environments are looked for."""


def excludes(working_dir: Path, file: SearchFile) -> list[str]:
    """Patterns of what stays behind: environments, and the data and runs of this search.

    Args:
        working_dir: absolute.
        file: whose data root and storage, where they lie within it, are left out.
    """
    own = (file.trial.data.root, file.search.storage)
    within = {place for url in own if (place := _within(working_dir, url)) is not None}
    places = sorted({*within, *environments(working_dir)})
    return [
        *ALWAYS_EXCLUDED,
        *(f"/{place.relative_to(working_dir).as_posix()}/" for place in places),
    ]


def environments(working_dir: Path) -> Iterator[Path]:
    """Virtual environments and conda's, whatever their names."""
    for depth in range(1, _DEPTH + 1):
        for marker in ("pyvenv.cfg", "conda-meta"):
            for found in working_dir.glob("*/" * depth + marker):
                yield found.parent


def config_within(working_dir: Path, config: str) -> str:
    """The configuration as the job finds it: a ready one's name, or a path from its directory.

    Raises:
        ConfigError: the file is not in the working directory.
    """
    path, colon, variant = config.partition(":")
    if not Path(path).is_file():
        find_config(path)  # a ready one, or an error that says so
        return config
    file = Path(path).resolve()
    if not file.is_relative_to(working_dir):
        raise ConfigError(
            f"{path}: it is not in the job's working directory {working_dir}; copy it there, or "
            "choose another with --working-dir"
        )
    return f"{file.relative_to(working_dir).as_posix()}{colon}{variant}"


def check_data_root(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a folder that the job would look for in its own copy.

    Args:
        values: of the configuration as it is written: once validated, it names absolute folders.
    """
    root = str(values.get("trial", {}).get("data", {}).get("root", EMBEDDED))
    is_elsewhere = "://" in root or Path(root).expanduser().is_absolute()
    if root != EMBEDDED and not is_elsewhere:
        raise ConfigError(
            f"trial.data.root = {root!r}: data do not go along with a job; give the absolute path "
            "or the URL under which every node of the cluster reaches them"
        )


def _within(working_dir: Path, url: str) -> Path | None:
    if "://" in url:
        return None
    place = (working_dir / Path(url).expanduser()).resolve()
    inside = place.is_relative_to(working_dir) and place != working_dir
    return place if inside and place.is_dir() else None
