"""Reading a configuration: the file, what it extends, and `--set`.

A file may start with ``extends: domainnet_vit_b16`` (a ready configuration, or a path relative to
the file's folder) and contain only what differs. How layers are merged: `trainers.overrides.merge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from trainers.data.suite import resolve_suite
from trainers.errors import ConfigError, nearest, shortened, suggestion
from trainers.overrides import flat, merge, nest
from trainers.redact import WRITE_NAME, has_password
from trainers.yaml_text import parse_yaml, read_yaml

_READY = Path(str(resources.files("search_spaces")), "configs")
_SUITE = "trial.data.suite"


def read_layers(
    source: str | Path,
    overrides: Iterable[str] = (),
    prepare: Callable[[dict[str, Any]], object] = lambda values: None,
) -> tuple[Callable[[str | None], str], dict[str, Any]]:
    """A function that names the source of a mistake in a key, and the merged, unchecked values.

    The arguments are those of `load_config`; `prepare` may change the values of the file before
    the overrides are merged over them.
    """
    path = find_config(source)
    values = _merged(path)
    version = values.pop("version", None)  # in run folders
    written = "" if version is None else f" (of lipsum-tune {shortened(str(version), 20)})"
    given = dict(map(_parse_override, overrides))
    prepare(values)

    def source_of(key: str | None) -> str:
        if any(f"{key}.".startswith(f"{own}.") for own in given):
            return "--set"
        # Two keys may not fit together, of which a file has one and `--set` the other.
        return f"{path}{written} with --set {', '.join(given)}" if given else f"{path}{written}"

    values = merge(values, nest(given))
    try:
        # Workers and resumed runs may not have the user's suite file, so its contents are put in.
        if suite := flat(values).get(_SUITE):
            values = nest({_SUITE: resolve_suite(suite, _SUITE)}, values)
        refuse_secrets(values)
    except ConfigError as error:
        raise error.within(source_of(error.key)) from None
    return source_of, values


def refuse_secrets(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError, which does not repeat it, for a literal secret in any text."""
    for key, value in flat(values).items():
        if str(key).startswith(_SUITE):  # names of classes and templates
            continue
        name = str(key).rpartition(".")[2]
        if has_password(f"{name}= {value}" if isinstance(value, str) else str(value)):
            problem = "a secret does not belong in a configuration"
            raise ConfigError(problem, key=str(key), hint=WRITE_NAME)


def find_config(source: str | Path) -> Path:
    """The file, or the ready configuration of that name."""
    path = Path(source)
    for found in (path, _READY / f"{source}.yaml"):
        if found.is_file():
            return found
    files = (file.name for file in path.parent.glob("*.yaml"))
    ready_ones = ready_configs()
    hint = nearest(path.name, [*files, *ready_ones]) or suggestion(str(source), ready_ones)
    raise ConfigError("no such file or ready configuration", hint=hint, source=source)


def ready_configs() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(file.stem for file in _READY.glob("*.yaml"))


def is_ready(file: Path) -> bool:
    """Whether a file is that of a ready configuration."""
    return file.parent == _READY


def files_of(source: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file of a configuration and what it extends, in turn, each with its own values."""
    files: list[tuple[Path, dict[str, Any]]] = []
    path = find_config(source)
    while True:
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ConfigError("expected the sections `trial:` and `search:`", source=path)
        base = values.pop("extends", None)
        files.append((path, values))
        if base is None:
            return files
        try:
            path = _extended(base, [file for file, _ in files])
        except ConfigError as error:
            raise ConfigError(str(error), key="extends", value=base, source=path) from None


def _extended(base: object, chain: Sequence[Path]) -> Path:
    """The file that the last one of a chain extends."""
    if not isinstance(base, str):
        raise ConfigError("expected the name of a ready configuration or a path")
    beside = chain[-1].parent / Path(base).expanduser()
    found = beside if beside.is_file() else find_config(base)
    if found.suffix not in (".yaml", ".yml"):  # its text could end up in messages
        raise ConfigError("not a .yaml file")
    if found.resolve() in [file.resolve() for file in chain]:
        raise ConfigError(f"circular: {' -> '.join(file.name for file in (*chain, found))}")
    return found


def _merged(source: str | Path) -> dict[str, Any]:
    """The values of a file, merged over those of the files that it extends."""
    *files, (_, merged) = files_of(source)
    for path, values in reversed(files):
        merged = merge(merged, values)
        # A search is named after its own file unless that file names it, never after what it
        # extends.
        if isinstance(merged.get("search", {}), Mapping) and "search.name" not in flat(values):
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")
            merged = nest({"search.name": name or "search"}, merged)
    return merged


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key, source = key.strip(), f"--set {shortened(key.strip())}"
    if not equals or not key:
        raise ConfigError("write it as key=value", source=source)
    if dotted := re.match(r"(.+\.(?:parameters|center))\.", key):
        hint = f"write '{dotted[1]}={{optim.lr: ...}}'"
        raise ConfigError("names of parameters have dots of their own", source=source, hint=hint)
    return key, parse_yaml(text, source)
