"""What a job gets: files of the working directory, and paths that are valid in its copy of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.data.data_root import EMBEDDED
from trainers.errors import ConfigError
from trainers.models.config import ModelConfig
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
    # Keys, tokens and passwords in a home directory.
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
"""Patterns as in a .gitignore file; Ray also applies the .gitignore files that it finds."""

_FILE_KEYS = ("model.name", "model.pretrained", "model.tokenizer", "method.texts_file")
"""Keys of a trial that may name a file. `data.suite` is not one: its file is read with the
configuration."""


def excludes(working_dir: Path, file: SearchFile) -> list[str]:
    """Patterns of files that are not uploaded: environments, data and runs of this search, secrets.

    Args:
        working_dir: absolute.
        file: its data root and storage are excluded if they lie in the working directory.
    """
    places = set()
    for url in (str(file.trial.data.root), file.search.storage):
        place = (working_dir / Path(url).expanduser()).resolve()
        if "://" not in url and place.is_dir() and working_dir in place.parents:
            places.add(place)
    for marker in ("pyvenv.cfg", "conda-meta"):  # virtual environments, whatever their names
        for pattern in (f"*/{marker}", f"*/*/{marker}"):
            places |= {found.parent for found in working_dir.glob(pattern)}
    own = (f"/{place.relative_to(working_dir).as_posix()}/" for place in sorted(places))
    return [*ALWAYS_EXCLUDED, *own]


def config_within(working_dir: Path, config: str) -> str:
    """The configuration for the job: name of a ready one, or path relative to its directory.

    Raises:
        ConfigError: the file is not in the working directory.
    """
    path, colon, variant = config.partition(":")
    if not Path(path).is_file():
        find_config(path)  # raises if it is not a ready one
        return config
    file = Path(path).resolve()
    if not file.is_relative_to(working_dir):
        raise _outside(working_dir, source=path)
    return f"{file.relative_to(working_dir).as_posix()}{colon}{variant}"


def _outside(working_dir: Path, **where: Any) -> ConfigError:
    problem = f"it is not in the job's working directory {working_dir}"
    hint = "copy it there, or choose another directory with --working-dir"
    return ConfigError(problem, hint=hint, **where)


def check_uploaded(
    files: Iterable[tuple[str, Path]], working_dir: Path, patterns: Iterable[str]
) -> None:
    """Check that a job gets the files of its configuration.

    Args:
        files: see `Origin.files`.
        patterns: of `excludes`.

    Raises:
        ConfigError: a file is not in the working directory, or in a folder that is not uploaded; or
            it is a plug-in, whose path in the job's copy would be part of the search.
    """
    anchored = [pattern for pattern in patterns if pattern.startswith("/")]
    for key, file in files:
        if key == "plugins":
            raise ConfigError(_TEMPORARY, key=key, value=str(file), hint=_PLUGIN_HINT)
        path = file.resolve()
        if not path.is_relative_to(working_dir):
            raise _outside(working_dir, key=key or None, value=str(file))
        if key == "trial.data.suite" and path != (working_dir / file).resolve():
            raise ConfigError(
                f"the job would not find it: it reads the path relative to {working_dir}",
                key=key,
                value=str(file),
                hint="call `submit` in that directory, or name the file in the configuration",
            )
        name = f"/{path.relative_to(working_dir).as_posix()}"
        if folder := next((pattern for pattern in anchored if name.startswith(pattern)), None):
            raise ConfigError(
                f"the folder {folder} of the working directory is not uploaded with a job",
                key=key or None,
                value=str(file),
                hint="move it to another folder",
            )


def check_paths(values: Mapping[str, Any]) -> None:
    """Check that all paths of a valid configuration are the same for the job as for its user.

    A job runs in a temporary copy of the working directory, a new one for each submission. A
    relative path would make each submission another search, and would not exist afterwards.

    Args:
        values: as written in the configuration; validated ones have absolute paths.

    Raises:
        ConfigError: a relative path.
    """
    trial, search = values.get("trial", {}), values.get("search", {})
    root = trial.get("data", {}).get("root", EMBEDDED)
    if isinstance(root, str) and root != EMBEDDED and "://" not in root and _is_relative(root):
        raise ConfigError(
            "data are not uploaded with a job",
            key="trial.data.root",
            value=root,
            hint="give the absolute path or URL under which every node reaches them",
        )
    for plugin in (*values.get("plugins", ()), *trial.get("plugins", ())):
        if str(plugin).endswith(".py") and _is_relative(str(plugin)):
            raise ConfigError(_TEMPORARY, key="plugins", value=plugin, hint=_PLUGIN_HINT)
    runs = search.get("warm_start", {}).get("runs", ())
    for run in [runs] if isinstance(runs, str) else runs:
        if _is_relative(run):
            hint = "give the absolute path of the run folder on the shared storage"
            raise ConfigError(_TEMPORARY, key="search.warm_start.runs", value=run, hint=hint)
    for key, name, value in _named_files(values):
        path = _path(name, value)
        if path is not None and _is_relative(path):
            hint = "give the absolute path under which every node reaches it"
            raise ConfigError(_TEMPORARY, key=key, value=value, hint=hint)
    databases = {
        "search.study_storage": search.get("study_storage"),
        "search.tracking.uri": search.get("tracking", {}).get("uri"),
    }
    for key, url in databases.items():
        scheme, _, path = str(url or "").rpartition("://")
        path = path.removeprefix("/") if scheme else path  # sqlite:///x is relative, as is x
        if path and scheme in ("", "sqlite") and not path.startswith("/"):
            hint = "give an absolute path (sqlite:////...), or the URL of a server"
            raise ConfigError(_TEMPORARY, key=key, value=url, hint=hint)


_TEMPORARY = "a job runs in a temporary copy of the working directory"
_PLUGIN_HINT = "give the absolute path under which every node reaches it, or a module"


def _is_relative(path: str) -> bool:
    return not Path(path).expanduser().is_absolute()


def _named_files(values: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Values that may be paths: where each stands, its key in the trial, and the value."""
    trial, space = values.get("trial", {}), values.get("search", {}).get("space", {})
    spaces = {"search.space": space}
    for method, own in space.get("by_method", {}).items():
        spaces[f"search.space.by_method.{method}"] = own
    for name in _FILE_KEYS:
        section, _, field = name.partition(".")
        yield f"trial.{name}", name, trial.get(section, {}).get(field)
        for where, searched in spaces.items():
            for choice in searched.get("parameters", {}).get(name, {}).get("choices", ()):
                yield f"{where}.parameters.{name}.choices", name, choice
            for point in searched.get("initial_points") or ():
                yield f"{where}.initial_points", name, point.get(name)


def _path(name: str, value: object) -> str | None:
    """The path in a value of one of `_FILE_KEYS`; None if it is not a path."""
    if not isinstance(value, str) or not value:
        return None
    section, _, field = name.partition(".")
    if section != "model":
        return value
    named: dict[str, Any] = {field: value}
    return next(iter(ModelConfig.model_construct(**named).paths), None)
