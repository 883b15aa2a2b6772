"""The search: Ray Tune and Optuna over fine-tunings, recorded in MLflow and in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.config.schema import SearchFile
    from tuning.config.validation import load_config
    from tuning.execution.run_search import SearchResult, run_search

__all__ = ["SearchFile", "SearchResult", "load_config", "run_search"]

_HOME = {
    "SearchFile": "tuning.config.schema",
    "load_config": "tuning.config.validation",
    "SearchResult": "tuning.execution.run_search",
    "run_search": "tuning.execution.run_search",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `lipsum-tune --help` need not wait for torch and Ray."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
