"""Reading a configuration: what it extends, the file, one of its variants, and `--set`.

A file may start with ``extends: domainnet_vit_b16`` (a ready configuration, or a path relative to
the file's folder) and contain only what differs. ``variants:`` names sets of dotted keys, chosen by
``FILE:VARIANT`` on the command line. Both keys are gone from the result.

Later layers win, key by key. But another `name` of a model, method, ready space or scheduler,
`methods` in place of a ready space or the reverse, and another `type` of a parameter replace their
whole section, because its other keys belong to the name before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from trainers.data.suite import load_suite, packaged_suites, resolve_suite
from trainers.errors import ConfigError, suggestion
from trainers.yaml_text import parse_yaml
from tuning.config.schema import SearchFile

_SUITE = ("trial", "data", "suite")
_SPACE = ("search", "space")
_STANDARD = SearchFile()
_DEFAULT_NAMES = {
    ("trial", "model"): _STANDARD.trial.model.name,
    ("trial", "method"): _STANDARD.trial.method.name,
    _SPACE: _STANDARD.search.space.name,
    ("search", "scheduler"): _STANDARD.search.scheduler.name,
}
"""Sections that another `name` replaces, and their name if none is given."""
_PARAMETER_FIELDS = ("type", "low", "high", "log", "step", "choices")


def read_layers(source: str | Path, overrides: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """The merged values of a configuration, not yet validated, and its name for messages.

    Args:
        source: a YAML file or the name of a ready configuration, optionally with `:VARIANT`.
        overrides: `key=value` with dotted keys; values are YAML.

    Raises:
        ConfigError: the file or variant does not exist, or something is not valid YAML.
    """
    path, variant = _split_variant(source)
    values = _read_file(path, ())
    variants = values.pop("variants", None) or {}
    name = str(path)
    if variant is not None:
        if not isinstance(variants, Mapping) or variant not in variants:
            hint = suggestion(variant, variants) if variants else "it has no variants"
            raise ConfigError(f"no variant {variant!r}", hint=hint, source=path)
        keys = variants[variant]
        if not isinstance(keys, Mapping):
            raise ConfigError(
                "expected dotted keys", key=f"variants.{variant}", value=keys, source=path
            )
        name = f"{path}:{variant}"
        values = _with_keys(values, keys, name)
    values = _with_keys(values, dict(map(_parse_override, overrides)), name)
    # Workers and resumed runs may not have the user's suite file, so its contents are put in.
    data = values.get("trial") and _section(values["trial"], "data")
    if data and data.get("suite") is not None:
        try:
            suite = resolve_suite(data["suite"], ".".join(_SUITE))
        except ConfigError as error:
            raise error.within(name) from None
        values = _set(values, _SUITE, suite)
    return name, values


def find_config(source: str | Path) -> Path:
    """The file, or the ready configuration of that name."""
    path = Path(source)
    ready = _ready_folder() / f"{source}.yaml"
    for found in (path, ready):
        if found.is_file():
            return found
    hint = suggestion(str(source), ready_configs())
    raise ConfigError("no such file or ready configuration", hint=hint, source=source)


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


def _read_file(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file, merged over those of the file that it extends."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(error), source=path) from None
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise ConfigError("expected the sections `trial:` and `search:`", source=path)
    _resolve_suite_paths(values, path.parent)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        problem = "expected the name of a ready configuration or a path"
        raise ConfigError(problem, key="extends", value=base, source=path)
    beside = path.parent / Path(base).expanduser()
    try:
        found = beside if beside.is_file() else find_config(base)
    except ConfigError as error:
        raise ConfigError(str(error), key="extends", value=base, source=path) from None
    if found.suffix not in (".yaml", ".yml"):  # its text could end up in messages
        raise ConfigError("not a .yaml file", key="extends", value=base, source=path)
    chain = (*extended_by, path.resolve())
    if found.resolve() in chain:
        names = " -> ".join(file.name for file in (*chain, found))
        raise ConfigError(f"circular: {names}", key="extends", value=base, source=path)
    merged = _merge(_read_file(found, chain), values)
    # A search is named after its own file unless that file names it, never after what it extends.
    search = merged.get("search", {})
    if isinstance(search, Mapping) and "name" not in (_section(values, "search") or {}):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")
        merged["search"] = {**search, "name": name or "search"}
    return merged


def _resolve_suite_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the path of a suite file absolute, also in variants, if the file lies in the folder."""
    variants = values.get("variants")
    layers = [values, *(variants.values() if isinstance(variants, dict) else ())]
    for layer in layers:
        # In a variant, any part of the path may be one dotted key.
        for key in ("trial", "trial.data", "trial.data.suite"):
            section, names = layer, [key, *_SUITE[key.count(".") + 1 :]]
            for name in names[:-1]:
                section = section.get(name) if isinstance(section, dict) else None
            suite = section.get(names[-1]) if isinstance(section, dict) else None
            if isinstance(suite, str) and suite not in packaged_suites():
                beside = folder / Path(suite).expanduser()
                if beside.is_file():
                    section[names[-1]] = str(beside.absolute())


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    source = f"--set {override!r}"
    if not equals or not key.strip():
        raise ConfigError("write it as key=value", source=source)
    return key.strip(), parse_yaml(text, source)


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], at: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values of `base` and `over`, of which `over` wins; sections are merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        path, below = (*at, key), base.get(key)
        if path == _SUITE and isinstance(below, str) and _changes_suite(value):
            below = _opened(below)
        if (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and not _replaces(path, below, value)
        ):
            merged[key] = _merge(below, value, path)
        else:
            merged[key] = value
    return merged


def _with_keys(values: dict[str, Any], keys: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values with one layer of dotted keys."""
    paths = {_key_path(str(key)): value for key, value in keys.items()}
    # First empty the sections that one of the keys replaces, so that the order of keys is free.
    for (*section, last), value in paths.items():
        below = _section(values, *section)
        if below is not None and _replaces(tuple(section), below, {last: value}):
            values = _set(values, section, {})
    for path, value in paths.items():
        if path[:3] == _SUITE and len(path) > 3:
            suite = (_section(values, "trial", "data") or {}).get("suite")
            if isinstance(suite, str):
                try:
                    values = _set(values, _SUITE, _opened(suite))
                except ConfigError as error:
                    raise error.within(source) from None
        for length in range(1, len(path)):
            above = _section(values, *path[: length - 1])
            below = above.get(path[length - 1]) if above is not None else None
            if below is not None and not isinstance(below, Mapping):
                key = ".".join(path[:length])
                problem = f"not a section, so {path[length]!r} in it cannot be set"
                raise ConfigError(problem, key=key, value=below, source=source)
        values = _set(values, path, value)
    return values


def _key_path(key: str) -> tuple[str, ...]:
    """The sections that a dotted key passes through, and its last part.

    Names of parameters contain dots themselves: `search.space.parameters.optim.lr.low` is
    `search`, `space`, `parameters`, `optim.lr`, `low`.
    """
    section, marker, parameter = key.partition(".parameters.")
    if not marker or not section.startswith(".".join(_SPACE)):
        return tuple(key.split("."))
    name, _, field = parameter.rpartition(".")
    rest = (name, field) if name and field in _PARAMETER_FIELDS else (parameter,)
    return (*section.split("."), "parameters", *rest)


def _replaces(path: tuple[str, ...], below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether `over` replaces the section at `path`, whose keys belong to another name or type."""
    if path == _SPACE and (over.get("methods") or below.get("methods")):
        return bool(over.get("name") or not below.get("methods"))
    if path in _DEFAULT_NAMES:
        name = below.get("name", _DEFAULT_NAMES[path])
        return bool(over.get("name", name) != name)
    if path[:-1] == (*_SPACE, "by_method"):
        name = below.get("name") or path[-1]
        return bool((over.get("name") or name) != name)
    if path[:2] == _SPACE and path[-2] == "parameters":
        return bool(over.get("type", below.get("type")) != below.get("type"))
    return False


def _changes_suite(value: Any) -> bool:
    """Whether these are keys to change in a suite; a suite of its own names its ID domain."""
    return isinstance(value, Mapping) and "id_domain" not in value


def _opened(suite: str) -> dict[str, Any]:
    """The keys of a packaged suite or suite file, so that others can be merged over them."""
    return load_suite(suite).model_dump(mode="json", exclude_unset=True)


def _section(values: Mapping[str, Any], *path: str) -> Mapping[str, Any] | None:
    """The section at a path; None if there is none."""
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _set(values: Mapping[str, Any], path: Iterable[str], value: Any) -> dict[str, Any]:
    """A copy of the values with one more; missing sections are made."""
    key, *rest = path
    return {**values, key: _set(values.get(key) or {}, rest, value) if rest else value}
