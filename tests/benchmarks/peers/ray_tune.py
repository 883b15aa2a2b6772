"""Stock Ray Tune: OptunaSearch, ASHA and a nested TorchTrainer, as Ray's guide shows it.

    python -m tests.benchmarks.peers.ray_tune JOB.json

A job has `trials` (parameters of each, without early stopping) or `budget` (a search of so many).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from tests.benchmarks.peers.fine_tune import append, train

WORKERS = 2
"""Trials at a time."""


def train_loop(config):
    """One trial in a worker of Ray Train."""
    for metrics, state in train(**config):
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)


class Results(tune.Callback):
    """Writes each report to the file of results."""

    def __init__(self, output):
        self.output = output

    def on_trial_result(self, trial, result, **info):
        """A trial has reported."""
        metrics = {k: v for k, v in result.items() if isinstance(v, int | float)}
        params = {k: trial.config[k] for k in ("lr", "reg_weight", "text_length")}
        append(self.output / "results.jsonl", params, metrics)


def main():
    """Run the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    output = Path(job["output"])
    fixed = {"steps": job["steps"], "every": job["every"]}

    def drive(config):
        TorchTrainer(
            train_loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(resources_per_worker={"CPU": 0.98}),
            run_config=ray.train.RunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=str(output / "train"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    settings: dict[str, Any] = {"num_samples": job["budget"], "max_concurrent_trials": WORKERS}
    if "trials" in job:
        settings["search_alg"] = BasicVariantGenerator(points_to_evaluate=job["trials"])
    else:
        settings |= {
            "metric": "val/mean_acc",
            "mode": "max",
            "search_alg": OptunaSearch(points_to_evaluate=[job["first"]], seed=0),
            "scheduler": ASHAScheduler(
                time_attr="step", max_t=job["steps"], grace_period=job["every"], reduction_factor=2
            ),
        }
    ray.init(num_cpus=WORKERS)
    tune.Tuner(
        tune.with_resources(drive, {"cpu": 0.01}),  # the worker needs the core
        param_space={
            "lr": tune.loguniform(*job["space"]["lr"]),
            "reg_weight": tune.loguniform(*job["space"]["reg_weight"]),
            "text_length": tune.lograndint(*job["space"]["text_length"]),
            **fixed,
        },
        tune_config=tune.TuneConfig(**settings),
        run_config=tune.RunConfig(
            storage_path=str(output / "tune"), callbacks=[Results(output)], verbose=0
        ),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
