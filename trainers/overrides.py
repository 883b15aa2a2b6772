"""Dotted keys such as ``optim.lr``, and layers of settings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD_KEY = "method.name"
"""Key of the method, in a trial and among the parameters of a search that compares several."""
LR_KEY = "optim.lr"
"""Key of the learning rate, in both."""


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


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of two layers, of which `over` wins.

    A mapping with a `name` or `type` that the one below does not have replaces it, since the other
    keys belong to that name. Other mappings are merged key by key, everything else is replaced.
    `search` and `sampler` are always merged: their other keys do not depend on the name.
    """
    merged = dict(base)
    for given, other in (("steps", "epochs"), ("epochs", "steps")):  # either is the length
        if given in over and other not in over:
            merged.pop(other, None)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            is_other = any(value.get(k, below.get(k)) != below.get(k) for k in ("name", "type"))
            if key in ("search", "sampler") or not is_other:
                value = merge(below, value)
        merged[key] = value
    return merged
