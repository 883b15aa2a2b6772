"""Small searches that train for real."""

import yaml

from tests.tuning.databases import with_database
from trainers.overrides import nest
from tuning.config.validation import load_config

STEPS = 9
PLAIN = {
    "search.references": [],
    "search.scheduler": {"name": "none"},
    "search.objective": {"metric": "val/mean_acc"},
    "trial.data.ood_domains": ["sketch"],
}
"""Changes of `configuration` to a search whose trials all train to their end."""
EQUAL_TRIALS = {
    "search.space": {
        "name": None,
        "parameters": {"optim.lr": {"type": "categorical", "choices": [3e-4]}},
    }
}
"""Changes to a search whose trials have the same figures."""


def configuration(root, storage):
    return {
        "trial": {
            "data": {"root": str(root)},
            "method": {"name": "lipsum_ft", "text_count": 16},
            "optim": {"lr": 1e-3, "batch_size": 8},
            "eval": {"every": 3, "line": "off"},
            "steps": STEPS,
        },
        "search": {
            "name": "small",
            "storage": str(storage),
            "scheduler": {"name": "asha", "grace_steps": 3, "reduction_factor": 2},
            "objective": {"metric": "train/lr", "mode": "max"},
            "budget": {"trials": 5},
        },
    }


def real_file(root, folder, **changes):
    """A search of trials one after the other, below `folder`; dotted keys, `__` for dots."""
    settings = {
        **PLAIN,
        "search.resources.max_concurrent": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    path = folder / "small.yaml"
    path.write_text(
        yaml.safe_dump(nest(settings, configuration(root, with_database(folder / "runs"))))
    )
    return load_config(path)


def untimed(report):
    clocks = ("cost/", "train/images_per_s")
    return {name: value for name, value in report.items() if not name.startswith(clocks)}


def outcomes(found):
    """Of each trial of a run, or of what a search has returned."""
    run = getattr(found, "run", found)
    return {record.trial_id: record.outcome for record in run.history.records}
