"""What a later version makes of a configuration that a run folder records.

`search.yaml` has every key of its version with its value. Readers skip keys that they do not know
and name them. A resume and `confirm` go on with trainings, so they refuse a key that this version
lacks, unless its value is the neutral one: training then does the same without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from trainers.errors import ConfigError
from trainers.overrides import flat
from tuning.config.schema import ELSEWHERE, SearchFile

REMOVED_KEYS: Final[Mapping[str, Any]] = {
    "search.budget.target": None,
    "search.resources.placement_strategy": "PACK",
    "search.resources.preemption_grace_s": 0.0,
    "search.sampler.metric": "auto",
    "search.space.by_method.*.name": None,
    "search.tracking.metrics": "main",
    "trial.eval.rung_weights": "raw",
}
"""Dotted key that a released version had -> the value with which it changed nothing. `*` stands for
any text."""

FREE: Final = (
    "search.budget",
    "search.resources",
    "search.tracking",
    "search.checkpoints.gigabytes",
    "search.checkpoints.keep_top",
    *(f"trial.data.{key}" for key in ELSEWHERE),
)
"""Keys that do not make a configuration another search."""
RESUMABLE: Final = (*FREE, "search.sampler", "search.scheduler")
"""Keys that a resume may change: none of them affects what a trial measures."""


def drop_unknown(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Remove the keys that a model does not have, and return them: dotted key -> value."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            model.model_validate(values)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            found = [e["loc"] for e in errors if e["type"] == "extra_forbidden"]
            if not found:
                return unknown  # other mistakes are reported by whoever validates the values
            for location in found:
                key, value = _pop(values, location)
                unknown[key] = value
        else:
            return unknown


def _pop(values: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Remove the value at a location of pydantic, which also has the tags of unions."""
    *parents, last = location
    names: list[str] = []
    for part in parents:
        is_key = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if is_key:
            values = values[part]
            names.append(str(part))
    return ".".join([*names, str(last)]), values.pop(last)


def compared(file: SearchFile, free: tuple[str, ...] = RESUMABLE) -> dict[str, Any]:
    """A configuration as dotted keys, without those that may change.

    Earlier runs have their names only, since they may have been moved.
    """
    values = flat(file.model_dump(mode="json"))
    values["search.warm_start.runs"] = [Path(run).name for run in file.search.warm_start.runs]
    return {key: value for key, value in values.items() if not _is_in(key, free)}


def differences(
    was: SearchFile,
    now: SearchFile,
    unknown: Mapping[str, Any] | None = None,
    free: tuple[str, ...] = RESUMABLE,
) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> recorded value and that of now, for all keys that differ and must not.

    Args:
        was: as recorded. A key that only this version has stands at its default there.
        unknown: what was recorded beside it. Such a key has no value now.
    """
    before, after = compared(was, free), compared(now, free)
    keys = sorted(key for key in before | after if before.get(key) != after.get(key))
    changed = {key: (before.get(key), after.get(key)) for key in keys}
    lost = unfollowed(unknown or {}, free)
    return changed | {key: (value, None) for key, value in lost.items()}


def unfollowed(unknown: Mapping[str, Any], free: tuple[str, ...] = RESUMABLE) -> dict[str, Any]:
    """The recorded keys that had an effect on trainings and that this version lacks."""
    return {
        key: value
        for key, value in unknown.items()
        if not _is_in(key, free) and not _is_neutral(key, value)
    }


def check_followed(unknown: Mapping[str, Any], source: object) -> None:
    """Raise a ConfigError for the first key that had an effect and that this version lacks."""
    for key, value in unfollowed(unknown).items():
        problem = "this version has no such key, so it cannot go on with these trainings"
        hint = "use the version that search.yaml names"
        raise ConfigError(problem, key=key, value=value, hint=hint, source=source)


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _is_neutral(key: str, value: Any) -> bool:
    patterns = (pattern for pattern in REMOVED_KEYS if fnmatchcase(key, pattern))
    return any(REMOVED_KEYS[pattern] == value for pattern in patterns)
