"""The same job as a search of this project: `python -m tests.benchmarks.peers.ours JOB.json`"""

import json
import sys
from pathlib import Path

from rich.console import Console

from tests.benchmarks.peers.fine_tune import append
from tuning.config.validation import load_config
from tuning.runs.callbacks import Callback
from tuning.search import SearchOptions, start_search


class Results(Callback):
    def __init__(self, output):
        self.output = output

    def trial_reported(self, record):
        params = {key.rpartition(".")[2]: value for key, value in record.params.items()}
        append(self.output / "results.jsonl", params, dict(record.metrics))


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    output = Path(job["output"])
    names = {"lr": "optim.lr"}
    points = [{names.get(n, f"method.{n}"): v for n, v in p.items()} for p in job["trials"]]
    settings = {
        "trial.steps": job["steps"],
        "trial.eval.every": job["every"],
        **({"trial.eval.line": job["line"]} if "line" in job else {}),
        "search.storage": output / "runs",
        "search.references": [],
        "search.resources.max_concurrent": 2,
        "search.budget.trials": len(points),
        "trial.eval.rung_images": 0,
        "search.scheduler": {"name": "none"},
        "search.space.initial_points": points,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    file = load_config("quickstart", overrides)
    start_search(file, SearchOptions(callbacks=[Results(output)], console=Console(quiet=True)))


if __name__ == "__main__":
    main()
