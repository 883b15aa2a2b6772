"""What of a working directory goes along with a job: code and configurations, nothing heavy.

And what of a configuration the job would not find again, or must not be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.data.data_root import EMBEDDED
from trainers.data.storage import refuse_secrets
from trainers.errors import ConfigError
from trainers.models.config import LOCAL_DIR, is_path
from tuning.config.loading import find_config
from tuning.config.schema import SearchFile

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
    # What a home directory holds and must never leave it: keys, tokens, passwords.
    ".aws/",
    ".azure/",
    ".config/",
    ".docker/",
    ".gnupg/",
    ".kube/",
    ".ray/",
    ".ssh/",
    ".netrc",
    "*.pem",
)
"""As in a .gitignore, which Ray also goes by where there is one."""

_FILES = ("model.name", "model.pretrained", "method.texts_file")
"""Keys of a trial that may name a file or folder, beside its images. A suite is none: the job
reads its file together with the configuration, and keeps what it says."""

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


def check_files(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a file of a trial that the job would look for in its own copy.

    Each submission has another copy, so the path would make it another search each time, and what
    reads the run later would look in a folder that is gone.

    Args:
        values: as of `check_data_root`, of a configuration that is valid.
    """
    for where, key, value in _named_files(values):
        path = _path(key, value)
        if path is not None and not Path(path).expanduser().is_absolute():
            raise _of_copy(where, value, "the absolute path under which every node reaches it")


def check_databases(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a database file that would lie in the job's own copy, and go with it.

    Args:
        values: as of `check_data_root`, of a configuration that is valid.
    """
    search = values.get("search", {})
    urls = {
        "search.study_storage": search.get("study_storage"),
        "search.tracking.uri": search.get("tracking", {}).get("uri"),
    }
    for key, url in urls.items():
        scheme, _, path = str(url or "").rpartition("://")
        path = path.removeprefix("/") if scheme else path  # sqlite:///x is relative, as is x
        if path and scheme in ("", "sqlite") and not path.startswith("/"):
            raise _of_copy(key, url, "an absolute path (sqlite:////...), or a server's URL")


def check_urls(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError, which does not repeat it, for a password in where data and runs lie.

    Args:
        values: as of `check_data_root`, of a configuration that is valid.
    """
    trial, search = values.get("trial", {}), values.get("search", {})
    urls = {
        "trial.data.root": trial.get("data", {}).get("root"),
        "search.storage": search.get("storage"),
    }
    for key, url in urls.items():
        try:
            refuse_secrets(str(url))
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None


def _of_copy(key: str, value: object, instead: str) -> ConfigError:
    return ConfigError(
        f"{key} = {value!r}: a job runs in a temporary copy of the working directory; "
        f"give {instead}"
    )


def _named_files(values: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Values that may be a file's path: where each stands, for which key of the trial, and it."""
    trial, space = values.get("trial", {}), values.get("search", {}).get("space", {})
    spaces = {"search.space": space}
    for method, own in space.get("by_method", {}).items():
        spaces[f"search.space.by_method.{method}"] = own
    for key in _FILES:
        section, _, field = key.partition(".")
        yield f"trial.{key}", key, trial.get(section, {}).get(field)
        for where, searched in spaces.items():
            for choice in searched.get("parameters", {}).get(key, {}).get("choices", ()):
                yield f"{where}.parameters.{key}.choices", key, choice
            for point in searched.get("initial_points") or ():
                yield f"{where}.initial_points", key, point.get(key)


def _path(key: str, value: object) -> str | None:
    """The path that the value of one of `_FILES` is, if it is one."""
    if not isinstance(value, str) or not value:
        return None
    if key == "model.pretrained":
        return value if is_path(value) else None
    if key == "model.name" and not value.endswith(".json"):
        return value.removeprefix(LOCAL_DIR) if value.startswith(LOCAL_DIR) else None
    return value


def _within(working_dir: Path, url: str) -> Path | None:
    if "://" in url:
        return None
    place = (working_dir / Path(url).expanduser()).resolve()
    inside = place.is_relative_to(working_dir) and place != working_dir
    return place if inside and place.is_dir() else None
