"""Small searches that train for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuning.execution.run_search import SearchResult
from tuning.runs.journal import History

STEPS = 9


def configuration(root: Path, storage: Path) -> dict[str, Any]:
    return {
        "trial": {
            "data": {"root": str(root)},
            "method": {"name": "lipsum_ft", "text_count": 16},
            "optim": {"lr": 1e-3, "batch_size": 8},
            "eval": {"every": 3},
            "steps": STEPS,
        },
        "search": {
            "name": "small",
            "storage": str(storage),
            "scheduler": {
                "name": "asha",
                "grace_steps": 3,
                "reduction_factor": 2,
                "check_trials": 0,
            },
            "objective": {"metric": "train/lr", "mode": "max"},
            "budget": {"trials": 5},
        },
    }


def outcomes(found: SearchResult | History) -> dict[str, str]:
    return {record.trial_id: record.outcome for record in found.records}
