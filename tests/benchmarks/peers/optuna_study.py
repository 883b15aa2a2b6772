"""Optuna's `study.optimize(n_jobs=2)`: trials in threads of one process, weak ones pruned.

    python -m tests.benchmarks.peers.optuna_study JOB.json

A job has `trials` (parameters of each, without pruning) or `budget` (a search of so many).
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
    """Run the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    output, space = Path(job["output"]), job["space"]
    torch.set_num_threads(1)  # of each trial
    validation_images()  # decoded once, before the threads start

    def objective(trial):
        params = {
            "lr": trial.suggest_float("lr", *space["lr"], log=True),
            "reg_weight": trial.suggest_float("reg_weight", *space["reg_weight"], log=True),
            "text_length": trial.suggest_int("text_length", *space["text_length"], log=True),
        }
        for metrics, state in train(**params, steps=job["steps"], every=job["every"]):
            torch.save(state, output / f"{trial.number}.pt")
            append(output / "results.jsonl", params, metrics)
            trial.report(metrics["val/mean_acc"], int(metrics["step"]))
            if metrics["step"] < job["steps"] and trial.should_prune():
                raise optuna.TrialPruned
        return metrics["val/mean_acc"]

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=job["every"], reduction_factor=2)
    fixed = job.get("trials")
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.NopPruner() if fixed else pruner,
    )
    for point in fixed or [job["first"]]:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=job["budget"], n_jobs=THREADS)


if __name__ == "__main__":
    main()
