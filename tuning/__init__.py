"""The public API: search the hyperparameters of robust fine-tuning of CLIP.

from tuning import load_config, run_search

result = run_search(load_config("quickstart", ["search.budget.trials=10"]))
result.run.best.params, result.run.trials, result.run.load_model()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_spaces import SearchSpace as SearchSpace
    from tuning.config.schema import SearchFile as SearchFile
    from tuning.config.validation import load_config as load_config
    from tuning.confirmation.confirm import confirm as confirm
    from tuning.log.callbacks import Callback as Callback
    from tuning.log.records import TrialRecord as TrialRecord
    from tuning.planning.plan import plan_search as plan_search
    from tuning.run import Run as Run
    from tuning.run import load_run as load_run
    from tuning.search import SearchResult as SearchResult
    from tuning.search import resume_search as resume_search
    from tuning.search import run_search as run_search
    from tuning.weights.export import export_weights as export_weights

_MODULES = {
    "Callback": "tuning.log.callbacks",
    "Run": "tuning.run",
    "SearchFile": "tuning.config.schema",
    "SearchResult": "tuning.search",
    "SearchSpace": "search_spaces",
    "TrialRecord": "tuning.log.records",
    "confirm": "tuning.confirmation.confirm",
    "export_weights": "tuning.weights.export",
    "load_config": "tuning.config.validation",
    "load_run": "tuning.run",
    "plan_search": "tuning.planning.plan",
    "resume_search": "tuning.search",
    "run_search": "tuning.search",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that the command line starts without torch and Ray."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
