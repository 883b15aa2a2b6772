"""Dotted keys such as ``optim.lr``, laid over nested dictionaries. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nest(dotted: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted keys laid over a nested dictionary, which is copied."""
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
