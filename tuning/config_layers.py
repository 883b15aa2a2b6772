"""The layers of a configuration: what its file extends, the file, a variant of it, and `--set`.

A file may begin with ``extends: domainnet_vit_b16``, a ready configuration or a path from its own
folder, and say only what differs. ``variants:`` names sets of dotted keys that are laid over it
where the command says ``FILE:VARIANT``. Neither key is left in what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from trainers.data.suite import packaged_suites, resolve_suite
from trainers.dotted import nest
from trainers.errors import ConfigError, did_you_mean

_PARAMETERS = "search.space.parameters."
_PARAMETER_FIELDS = ("type", "low", "high", "log", "step", "choices")
_KINDS = ("trial.model", "trial.method", "search.space", "search.scheduler")
"""Sections whose other keys belong to their `name`: with another name, they start afresh."""


def read_layers(source: str | Path, overrides: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """The values of a configuration, not yet validated, and what to call it in messages.

    Args:
        source: a YAML file or the name of a ready one, perhaps with `:VARIANT`.
        overrides: `key=value` with dotted keys; values are YAML.

    Raises:
        ConfigError: no such file or variant, or something in it that is no YAML.
    """
    path, variant = _split_variant(source)
    values = _extended(path, ())
    variants = values.pop("variants", None)
    if variant is not None:
        values = _with_variant(values, variants, variant, path)
    for override in overrides:
        values = _with_override(values, override)
    name = str(path) if variant is None else f"{path}:{variant}"
    return name, _with_suite(values, name)


def find_config(source: str | Path) -> Path:
    """The file itself, or the ready configuration of that name."""
    path = Path(source)
    if path.is_file():
        return path
    named = _ready_folder() / f"{source}.yaml"
    if named.is_file():
        return named
    raise ConfigError(
        f"{source}: no such file, nor a ready configuration"
        f"{did_you_mean(str(source), ready_configs())}"
    )


def ready_configs() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(file.stem for file in _ready_folder().glob("*.yaml"))


def _ready_folder() -> Path:
    return Path(str(resources.files("search_spaces"))) / "configs"


def _split_variant(source: str | Path) -> tuple[Path, str | None]:
    name, colon, variant = str(source).rpartition(":")
    if not colon or Path(source).is_file():
        return find_config(source), None
    return find_config(name), variant


def _extended(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values over those of what it extends; `below` are the files that led here."""
    values = _read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends = {base!r}: expected a ready configuration or a path")
    beside = path.parent / Path(base).expanduser()
    try:
        found = beside if beside.is_file() else find_config(base)
    except ConfigError as error:
        raise ConfigError(f"{path}: extends = {base!r}: {error}") from None
    chain = (*below, path.resolve())
    if found.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, found))
        raise ConfigError(f"{path}: extends = {base!r}: it comes back to itself ({names})")
    return _merge(_extended(found, chain), values)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below, where = base.get(key), f"{at}.{key}" if at else key
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            another = where in _KINDS and value.get("name", below.get("name")) != below.get("name")
            merged[key] = value if another else _merge(below, value, where)
        else:
            merged[key] = value
    return merged


def _with_variant(
    values: dict[str, Any], variants: Any, variant: str, path: Path
) -> dict[str, Any]:
    if not isinstance(variants, Mapping) or not variants:
        raise ConfigError(f"{path}: it has no variants, so none called {variant!r}")
    keys = variants.get(variant)
    if keys is None:
        raise ConfigError(f"{path}: it has no variant {variant!r}{did_you_mean(variant, variants)}")
    if not isinstance(keys, Mapping):
        raise ConfigError(f"{path}: variants.{variant} = {keys!r}: expected dotted keys")
    for key, value in keys.items():
        values = _override(values, str(key), value)
    return values


def _with_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as key=value")
    try:
        return _override(values, key.strip(), yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {_yaml_problem(error)}") from None


def _override(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with one more key; the names of searched parameters have dots of their own."""
    if not key.startswith(_PARAMETERS):
        return nest({key: value}, values)
    name, field = key.removeprefix(_PARAMETERS), ""
    if name.rpartition(".")[2] in _PARAMETER_FIELDS:
        name, _, field = name.rpartition(".")
    parameters: Any = values
    for part in ("search", "space", "parameters"):
        parameters = parameters.get(part) or {}
        if not isinstance(parameters, Mapping):
            return values  # which validation refuses
    if not field:
        return nest({_PARAMETERS.rstrip("."): {**parameters, name: value}}, values)
    given = parameters.get(name) or {}
    if not isinstance(given, Mapping):
        return values
    return nest({_PARAMETERS.rstrip("."): {**parameters, name: {**given, field: value}}}, values)


def _with_suite(values: dict[str, Any], name: str) -> dict[str, Any]:
    """With a suite of the user's own put in whole: workers and resumed runs have no such file."""
    data = _data(values)
    if data is None or data.get("suite") is None:
        return values
    try:
        suite = resolve_suite(data["suite"], "trial.data.suite")
    except ConfigError as error:
        lines = (f"{name}: {line}" for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from None
    return nest({"trial.data.suite": suite}, values)


def _data(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    trial = values.get("trial")
    data = trial.get("data") if isinstance(trial, Mapping) else None
    return data if isinstance(data, Mapping) else None


def _read_yaml(path: Path) -> dict[str, Any]:
    """The file's keys; the path of a suite is relative to the file's folder, if it is there."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected the sections `trial:` and `search:`")
    suite = (_data(values) or {}).get("suite")
    if isinstance(suite, str) and suite not in packaged_suites():
        beside = path.parent / Path(suite).expanduser()
        if beside.is_file():
            values["trial"]["data"]["suite"] = str(beside.absolute())
    return values


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
