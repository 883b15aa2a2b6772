"""The layers of a configuration: what its file extends, the file, a variant of it, and `--set`.

A file may begin with ``extends: domainnet_vit_b16``, a ready configuration or a path from its own
folder, and say only what differs. ``variants:`` names sets of dotted keys that are laid over it
where the command says ``FILE:VARIANT``. Neither key is left in what comes out.

In every layer alike, what belongs to a kind goes with it: another model, method, ready space or
scheduler, several methods in place of one ready space, or another `type` of a parameter, leaves
nothing of what the layers below said of the one before. Fewer methods leave nothing of what they
said of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from trainers.data.suite import load_suite, packaged_suites, resolve_suite
from trainers.errors import ConfigError, did_you_mean
from trainers.overrides import nest
from tuning.config.schema import SearchFile
from tuning.config.search_space import ALL

_SUITE = "trial.data.suite"
_SPACE = "search.space"
_PARAMETER = re.compile(r"(?P<section>search\.space(\.by_method\.\w+)?\.parameters)\.(?P<name>.+)")
"""Of all methods, or of one of several; the names of parameters have dots of their own."""
_OF_METHOD = re.compile(r"search\.space\.by_method\.(?P<method>\w+)")
_PARAMETER_FIELDS = ("type", "low", "high", "log", "step", "choices")
_STANDARD = SearchFile()
_KINDS = {
    "trial.model": _STANDARD.trial.model.name,
    "trial.method": _STANDARD.trial.method.name,
    _SPACE: _STANDARD.search.space.name,
    "search.scheduler": _STANDARD.search.scheduler.name,
}
"""Sections whose other keys belong to their `name`, and the name where none is given."""


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
    values = _laid_over(values, [_parsed(override) for override in overrides])
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
    return _with_own_name(_merge(_extended(found, chain), values), values, path)


def _with_own_name(merged: dict[str, Any], own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A search called as its file is, unless that says another name: never as what it extends."""
    search = merged.get("search", {})
    if not isinstance(search, Mapping) or "name" in (_at(own, "search") or {}):
        return merged
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")
    return merged | {"search": {**search, "name": name or "search"}}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    if at == _SPACE:
        base = _of_methods(base, over.get("methods"))
    merged = dict(base)
    for key, value in over.items():
        below, where = base.get(key), f"{at}.{key}" if at else key
        if where == _SUITE and isinstance(value, Mapping) and "id_domain" not in value:
            below = _opened(below)  # another suite would say which domain is its own
            value = below if isinstance(below, str) else value
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            afresh = _starts_afresh(where, below, value)
            merged[key] = value if afresh else _merge(below, value, where)
        else:
            merged[key] = value
    return merged


def _of_methods(space: Mapping[str, Any], methods: Any) -> Mapping[str, Any]:
    """A space without what it says of single methods that a layer above leaves out."""
    listed = [methods] if isinstance(methods, str) else methods
    of_each = space.get("by_method")
    if not listed or not isinstance(listed, list) or not isinstance(of_each, Mapping):
        return space
    kept = {name: said for name, said in of_each.items() if name in listed or ALL in listed}
    return {**space, "by_method": kept}


def _starts_afresh(where: str, below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether a section is now of another kind, to which the keys `below` do not belong."""
    if where == _SPACE and over.get("methods"):
        return not below.get("methods")
    if where == _SPACE and below.get("methods"):
        return bool(over.get("name"))
    if where in _KINDS:
        name = below.get("name", _KINDS[where])
        return bool(over.get("name", name) != name)
    if of_method := _OF_METHOD.fullmatch(where):
        name = below.get("name") or of_method["method"]
        return (over.get("name") or name) != name
    if _PARAMETER.fullmatch(where):
        another = over.get("type", below.get("type")) != below.get("type")
        return another or ("choices" in over and "choices" not in below)
    return False


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
    return _laid_over(values, [(str(key), value) for key, value in keys.items()])


def _parsed(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as key=value")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {_yaml_problem(error)}") from None


def _laid_over(values: dict[str, Any], keys: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`values` with one layer's dotted keys, none of which another's new `name` takes away."""
    for key, value in keys:
        section, _, field = key.rpartition(".")
        of_parameter = _PARAMETER.fullmatch(section)
        path = section.split(".")
        if of_parameter:
            path = [*of_parameter["section"].split("."), of_parameter["name"]]
        below = _at(values, *path)
        if below is not None and _starts_afresh(section, below, {field: value}):
            values = _override(values, section, {})
        if key == f"{_SPACE}.methods" and below is not None:
            values = nest({_SPACE: _of_methods(_at(values, *path) or {}, value)}, values)
    for key, value in keys:
        values = _override(values, key, value)
    return values


def _override(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with one more key."""
    if key.startswith(f"{_SUITE}."):
        suite = _opened((_at(values, "trial", "data") or {}).get("suite"))
        if isinstance(suite, str):
            return values  # which validation refuses
        return nest({key: value}, nest({_SUITE: suite}, values))
    of_parameter = _PARAMETER.fullmatch(key)
    if not of_parameter:
        return nest({key: value}, values)
    section, name, field = of_parameter["section"], of_parameter["name"], ""
    if name.rpartition(".")[2] in _PARAMETER_FIELDS:
        name, _, field = name.rpartition(".")
    parameters: Any = values
    for part in section.split("."):
        parameters = parameters.get(part) or {}
        if not isinstance(parameters, Mapping):
            return values  # which validation refuses
    if not field:
        return nest({section: {**parameters, name: value}}, values)
    given = parameters.get(name) or {}
    if not isinstance(given, Mapping):
        return values
    return nest({section: {**parameters, name: {**given, field: value}}}, values)


def _opened(suite: Any) -> Any:
    """The keys of a suite in place of its name or file, so that others can be laid over.

    A name that is none stays, and is refused when all is laid.
    """
    try:
        opened = load_suite(suite) if isinstance(suite, str) else None
    except ConfigError:
        opened = None
    return opened.model_dump(mode="json", exclude_unset=True) if opened else suite


def _with_suite(values: dict[str, Any], name: str) -> dict[str, Any]:
    """With a suite of the user's own put in whole: workers and resumed runs have no such file."""
    data = _at(values, "trial", "data")
    if data is None or data.get("suite") is None:
        return values
    try:
        suite = resolve_suite(data["suite"], _SUITE)
    except ConfigError as error:
        lines = (f"{name}: {line}" for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from None
    return nest({_SUITE: suite}, values)


def _at(values: Mapping[str, Any], *path: str) -> Mapping[str, Any] | None:
    """The section there, if there is one."""
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


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
    _find_suites(values, path.parent)
    variants = values.get("variants")
    for keys in variants.values() if isinstance(variants, dict) else ():
        if isinstance(keys, dict):
            _find_suites(keys, path.parent)
    return values


def _find_suites(values: dict[str, Any], folder: Path, at: str = "") -> None:
    """Put the whole path of a suite that lies in the folder; keys may be dotted, or sections."""
    for key, value in values.items():
        where = f"{at}{key}"
        if where == _SUITE and isinstance(value, str) and value not in packaged_suites():
            beside = folder / Path(value).expanduser()
            if beside.is_file():
                values[key] = str(beside.absolute())
        elif isinstance(value, dict) and _SUITE.startswith(f"{where}."):
            _find_suites(value, folder, f"{where}.")


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
