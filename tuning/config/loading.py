"""Reading a configuration: what it extends, the file, one of its variants, and `--set`.

A file may start with ``extends: domainnet_vit_b16`` (a ready configuration, or a path relative to
the file's folder) and contain only what differs. ``variants:`` names sets of dotted keys or
sections, chosen by ``FILE:VARIANT`` on the command line; its search is called `<name>-<variant>`,
unless it is named there. Both keys are gone from the result.

Later layers win, key by key. But another `name` of a model, method, ready space or scheduler,
`methods` in place of a ready space or the reverse, and another `type` of a parameter replace their
whole section, because its other keys belong to the name before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from trainers.data.suite import load_suite, packaged_suites, resolve_suite
from trainers.errors import ConfigError, nearest, shortened, suggestion
from trainers.overrides import flat
from trainers.redact import WRITE_NAME, has_password
from trainers.yaml_text import parse_yaml, read_yaml
from tuning.config.schema import SearchFile

_SUITE = ("trial", "data", "suite")
_SUITE_KEY = ".".join(_SUITE)
_PLUGINS = "plugins"
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


@dataclass(frozen=True)
class Origin:
    """Where the values of a configuration come from, for messages."""

    file: str
    """With its variant."""
    overridden: tuple[str, ...] = ()
    """Keys of `--set`, or of the overrides from Python."""
    files: tuple[tuple[str, Path], ...] = ()
    """Key and path of each file of the user that another directory would not have: the
    configuration, and those that `extends`, `data.suite` and `plugins` name with a relative
    path."""

    def of(self, key: str | None) -> str:
        """The source of a mistake in a key: `--set`, if that gave its value, else the file."""
        if any(f"{key}.".startswith(f"{given}.") for given in self.overridden):
            return "--set"
        # Two keys may not fit together, of which a file has one and `--set` the other.
        changed = f" with --set {', '.join(self.overridden)}" if self.overridden else ""
        return f"{self.file}{changed}"


def read_layers(source: str | Path, overrides: Iterable[str] = ()) -> tuple[Origin, dict[str, Any]]:
    """The merged values of a configuration, not yet validated, and where they come from.

    The arguments are those of `load_config`.

    Raises:
        ConfigError: the file or variant does not exist, something is not valid YAML, or a value is
            a literal secret.
    """
    file, _, variant = str(source).rpartition(":")
    if not file or Path(source).is_file():
        file, variant = str(source), ""
    path = find_config(file)
    files: list[tuple[str, Path]] = []
    values = _read_file(path, (), files)
    variants = values.pop("variants", None) or {}
    name = str(path)
    given = dict(map(_parse_override, overrides))
    layers = [given]
    if variant:
        if not isinstance(variants, Mapping):
            problem = "expected the names of variants, each with sections or dotted keys"
            raise ConfigError(problem, key="variants", value=variants, source=path)
        variants = {str(name): keys for name, keys in variants.items()}
        if variant not in variants:
            hint = suggestion(variant, variants) if variants else "it has no variants"
            raise ConfigError(f"no variant {variant!r}", hint=hint, source=path)
        if not isinstance(variants[variant], Mapping):
            key, value = f"variants.{variant}", variants[variant]
            raise ConfigError("expected sections or dotted keys", key=key, value=value, source=path)
        name = f"{path}:{variant}"
        searched = _section(values, "search").get("name", _STANDARD.search.name)
        layers = [{"search.name": f"{searched}-{variant}"}, variants[variant], *layers]
    origin = Origin(name, tuple(given))
    try:
        for keys in layers:
            # A whole section is merged as in a file. The mapping of a dotted key replaces the old.
            whole = {k: v for k, v in keys.items() if "." not in str(k) and isinstance(v, Mapping)}
            dotted = {key: value for key, value in keys.items() if key not in whole}
            values = _merge(_merge(values, whole), _nested(dotted))
        suite = _section(values, *_SUITE[:2]).get("suite")
        if isinstance(suite, str) and not (
            suite in packaged_suites() or Path(suite).expanduser().is_absolute()
        ):
            files.append((_SUITE_KEY, Path(suite)))
        # Workers and resumed runs may not have the user's suite file, so its contents are put in.
        if suite is not None:
            values = _merge(values, _nested({_SUITE_KEY: resolve_suite(suite, _SUITE_KEY)}))
        refuse_secrets(values)
    except ConfigError as error:
        raise error.within(origin.of(error.key)) from None
    plugins = [values.get(_PLUGINS), _section(values, "trial").get(_PLUGINS)]
    used = [suite, *(name for given in plugins if isinstance(given, list) for name in given)]
    chosen = (_SUITE_KEY, _PLUGINS)
    read = tuple((by, file) for by, file in files if by not in chosen or str(file) in used)
    return replace(origin, files=read), values


def refuse_secrets(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError, which does not repeat it, for a literal secret in any text."""
    for key, value in flat(values).items():
        if str(key).startswith(_SUITE_KEY):  # names of classes and templates
            continue
        name = str(key).rpartition(".")[2]
        if has_password(f"{name}= {value}" if isinstance(value, str) else str(value)):
            problem = "a secret does not belong in a configuration"
            raise ConfigError(problem, key=str(key), hint=WRITE_NAME)


def find_config(source: str | Path) -> Path:
    """The file, or the ready configuration of that name."""
    path = Path(source)
    ready = _ready_folder() / f"{source}.yaml"
    for found in (path, ready):
        if found.is_file():
            return found
    files, ready_ones = (file.name for file in path.parent.glob("*.yaml")), ready_configs()
    hint = nearest(path.name, [*files, *ready_ones]) or suggestion(str(source), ready_ones)
    raise ConfigError("no such file or ready configuration", hint=hint, source=source)


def ready_configs() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(file.stem for file in _ready_folder().glob("*.yaml"))


def _ready_folder() -> Path:
    return Path(str(resources.files("search_spaces"))) / "configs"


def _read_file(
    path: Path, extended_by: tuple[Path, ...], files: list[tuple[str, Path]]
) -> dict[str, Any]:
    """The values of a file, merged over those of the file that it extends.

    Args:
        files: gets what `Origin.files` has, and suites and plug-ins that other values may replace.
    """
    values = read_yaml(path)
    if path.parent != _ready_folder():
        files.append(("extends" if extended_by else "", path))
    if not isinstance(values, dict):
        raise ConfigError("expected the sections `trial:` and `search:`", source=path)
    _resolve_paths(values, path.parent, files)
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
    of_base = [] if Path(base).expanduser().is_absolute() else files
    merged = _merge(_read_file(found, chain, of_base), values)
    # A search is named after its own file unless that file names it, never after what it extends.
    search = merged.get("search", {})
    if isinstance(search, Mapping) and "name" not in _section(values, "search"):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")
        merged["search"] = {**search, "name": name or "search"}
    return merged


def _resolve_paths(values: dict[str, Any], folder: Path, files: list[tuple[str, Path]]) -> None:
    """Make paths of suites and plug-ins absolute, also in variants, if they are in the folder."""

    def resolved(name: Any, key: str) -> Any:
        beside = folder / Path(name).expanduser() if isinstance(name, str) else folder
        if not beside.is_file():
            return name
        if not Path(name).expanduser().is_absolute():
            files.append((key, beside.absolute()))
        return str(beside.absolute())

    def resolve(section: dict[str, Any], at: str = "") -> None:
        for key, value in section.items():
            path = f"{at}{key}"  # in a variant, any part of it may be one dotted key
            if isinstance(value, dict):
                resolve(value, f"{path}.")
            elif path == _SUITE_KEY and isinstance(value, str) and value not in packaged_suites():
                section[key] = resolved(value, _SUITE_KEY)
            elif path in (_PLUGINS, f"trial.{_PLUGINS}") and isinstance(value, list):
                section[key] = [
                    resolved(name, _PLUGINS) if str(name).endswith(".py") else name
                    for name in value
                ]

    variants = values.get("variants")
    for layer in [values, *(variants.values() if isinstance(variants, dict) else ())]:
        if isinstance(layer, dict):
            resolve(layer)


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    source = f"--set {shortened(key.strip())}"
    if not equals or not key.strip():
        raise ConfigError("write it as key=value", source=source)
    return key.strip(), parse_yaml(text, source)


class _Keys(dict[str, Any]):
    """A section made of dotted keys. It is merged, other than a mapping that is a key's value."""


def _nested(keys: Mapping[str, Any]) -> _Keys:
    """One layer of dotted keys as sections."""
    nested = _Keys()
    for key, value in keys.items():
        *sections, last = _key_path(str(key))
        inner: dict[str, Any] = nested
        for depth, name in enumerate(sections, 1):
            below = inner.get(name, _Keys())
            if not isinstance(below, dict):
                raise _not_a_section(sections[:depth], below, [*sections, last][depth])
            inner[name] = inner = type(below)(below)
        inner[last] = value
    return nested


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], at: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values of `base` and `over`, of which `over` wins; sections are merged key by key."""
    merged = dict(base)
    sections = _Keys if isinstance(over, _Keys) else Mapping
    for key, value in over.items():
        path, below = (*at, key), base.get(key)
        if isinstance(value, sections):
            # Keys to change in a named suite; a suite of its own names its ID domain.
            changes_suite = isinstance(value, _Keys) or "id_domain" not in value
            if path == _SUITE and isinstance(below, str) and changes_suite:
                below = load_suite(below).model_dump(mode="json", exclude_unset=True)
            if isinstance(below, Mapping) and not _replaces(path, below, value):
                value = _merge(below, value, path)
            elif isinstance(value, _Keys) and below is not None and not isinstance(below, Mapping):
                raise _not_a_section(path, below, next(iter(value)))
        merged[key] = value
    return merged


def _not_a_section(path: Sequence[str], value: object, key: str) -> ConfigError:
    problem = f"not a section, so {key!r} in it cannot be set"
    return ConfigError(problem, key=".".join(path), value=value)


def _key_path(key: str) -> tuple[str, ...]:
    """The sections that a dotted key passes through, and its last part.

    Names of parameters contain dots themselves: `search.space.parameters.optim.lr.low` is
    `search`, `space`, `parameters`, `optim.lr`, `low`, and the same in a prior.
    """
    if in_prior := re.fullmatch(r"(search\.prior(?:\.by_method\.\w+)?)\.(center|width)\.(.+)", key):
        return (*in_prior[1].split("."), in_prior[2], in_prior[3])
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


def _section(values: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The section at a path; empty if there is none."""
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
