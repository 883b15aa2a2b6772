"""Optuna's `study.optimize(n_jobs=2)`: trials in threads of one process.

`python -m tests.benchmarks.peers.optuna_study JOB.json`
"""

import json
import sys
from pathlib import Path

import optuna
import torch

from tests.benchmarks.peers.fine_tune import append, train, validation_images

THREADS = 2
"""Trials at a time."""


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    output = Path(job["output"])
    torch.set_num_threads(1)  # of each trial
    validation_images()  # decoded once, before the threads start

    def objective(trial):
        params = job["trials"][trial.number]
        for metrics, state in train(**params, steps=job["steps"], every=job["every"]):
            torch.save(state, output / f"{trial.number}.pt")
            append(output / "results.jsonl", params, metrics)
        return metrics["val/mean_acc"]

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=len(job["trials"]), n_jobs=THREADS)


if __name__ == "__main__":
    main()
