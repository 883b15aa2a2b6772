"""Stock Ray Tune with a nested TorchTrainer, as Ray's guide shows it.

`python -m tests.benchmarks.peers.ray_tune JOB.json`
"""

import json
import sys
import tempfile
from pathlib import Path

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from tests.benchmarks.peers.fine_tune import append, train

WORKERS = 2
"""Trials at a time."""


def train_loop(config):
    for metrics, state in train(**config):
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)


class Results(tune.Callback):
    def __init__(self, output):
        self.output = output

    def on_trial_result(self, trial, result, **info):
        metrics = {k: v for k, v in result.items() if isinstance(v, int | float)}
        append(self.output / "results.jsonl", trial.config["params"], metrics)


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    output = Path(job["output"])
    length = {"steps": job["steps"], "every": job["every"]}

    def drive(config):
        TorchTrainer(
            train_loop,
            train_loop_config={**config["params"], **length},
            scaling_config=ray.train.ScalingConfig(resources_per_worker={"CPU": 0.98}),
            run_config=ray.train.RunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=str(output / "train"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    ray.init(num_cpus=WORKERS)
    tune.Tuner(
        tune.with_resources(drive, {"cpu": 0.01}),  # the worker needs the core
        param_space={"params": tune.grid_search(job["trials"])},
        tune_config=tune.TuneConfig(max_concurrent_trials=WORKERS),
        run_config=tune.RunConfig(
            storage_path=str(output / "tune"), callbacks=[Results(output)], verbose=0
        ),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
