"""Applying dotted keys such as ``optim.lr`` to nested dictionaries. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD_NAME = "method.name"


def nest(dotted: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A copy of a nested dictionary with the values of dotted keys."""
    nested = {k: nest({}, v) if isinstance(v, Mapping) else v for k, v in (base or {}).items()}
    for key, value in dotted.items():
        *parents, leaf = key.split(".")
        target = nested
        for parent in parents:
            child = target.get(parent)
            if not isinstance(child, dict):
                child = target[parent] = {}
            target = child
        target[leaf] = value
    return nested


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `nest`: dotted keys. An empty section is a value."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            values |= {f"{key}.{below}": inner for below, inner in flat(value).items()}
        else:
            values[key] = value
    return values


def over_trial(dotted: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a `TrialConfig`'s plain values with the values of dotted keys.

    Unlike `nest`, another ``method.name`` drops all other ``method`` keys of the trial, which are
    settings of the method before.
    """
    method = trial.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if dotted.get(METHOD_NAME, name) != name:
        trial = {key: value for key, value in trial.items() if key != "method"}
    return nest(dotted, trial)
