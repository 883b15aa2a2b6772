"""Record real learning curves for the simulator: `python -m tests.benchmarks.record_curves`

Trains configurations of the quickstart's space on the embedded benchmark at full length, each
evaluated eight times on the *validation* splits, into `curves.parquet` beside this file. The points
are a Sobol sequence, so they cover the space evenly, whatever their number. Takes half a minute of
one core each; what the table holds already is not trained again, so the command may be interrupted.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainers.config import TrialConfig
from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config

CURVES = Path(__file__).with_name("curves.parquet")
CONFIG = ("quickstart", ["trial.eval.every=15"])
COSTS = ("cost/seconds", "cost/eval_seconds", "cost/cpu_seconds")


def record(number: int, params: dict[str, Any], config: TrialConfig) -> list[dict[str, Any]]:
    """The rows of one configuration, one a report; runs in a process of its own."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    try:
        for report in fine_tune(config):
            metrics = {
                name: value
                for name, value in report.metrics.items()
                if name.endswith(("/acc", "_acc", "/nll", "train/loss")) or name in COSTS
            }
            rows.append({"configuration": number, **params, "step": report.step, **metrics})
    except TrainingDiverged:
        pass  # the curve ends here, as it would in a search
    return rows


def sobol(file: SearchFile, count: int) -> list[dict[str, Any]]:
    """The first points of a scrambled Sobol sequence in the file's space."""
    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(scramble=True, seed=0))
    distributions = file.search_space().distributions()
    points = []
    for _ in range(count):
        trial = study.ask(distributions)
        points.append(dict(trial.params))
        study.tell(trial, 0.0)
    return points


def main() -> None:
    """Train what the table lacks, and write it after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=256)
    parser.add_argument("--output", type=Path, default=CURVES)
    parser.add_argument("--rung-weights", choices=("raw", "averaged"), default="raw")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    source, overrides = CONFIG
    rung_weights = f"trial.eval.rung_weights={arguments.rung_weights}"
    file = load_config(source, [*overrides, rung_weights])
    resolve_root(file.trial.data.root, progress=True)
    rows = pq.read_table(arguments.output).to_pylist() if arguments.output.is_file() else []
    recorded = {row["configuration"] for row in rows}
    points = sobol(file, arguments.configurations)
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        jobs = [
            pool.submit(record, number, params, file.trial_config(params))
            for number, params in enumerate(points)
            if number not in recorded
        ]
        for job in as_completed(jobs):
            rows += job.result()
            rows.sort(key=lambda row: (row["configuration"], row["step"]))
            pq.write_table(pa.Table.from_pylist(rows), arguments.output)
            print(f"{len({r['configuration'] for r in rows})} of {len(points)}", flush=True)


if __name__ == "__main__":
    main()
