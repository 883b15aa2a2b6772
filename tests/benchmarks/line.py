"""What a point of the line is worth beside the end of a training: `python -m tests.benchmarks.line`

Trains FT and Lipsum-FT of the quickstart with right and wrong hyperparameters, each with
`trial.eval.line: auto`, and then evaluates the whole line in steps of 0.05. All on the validation
splits, so the best point of the whole line is a little flattered.

`--recorded` compares chosen points and ends in the recorded trainings of `simulate` instead.

`--cost N` trains N pairs of the quickstart's trial without and with the line instead, one after the
other, and prints the ratios of their CPU time.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from tests.benchmarks.record_curves import END
from trainers.config import with_overrides
from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.evaluation.line import GRID
from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import holding
from trainers.loop.evaluate_run import measure as measure_run
from trainers.loop.state import load_split
from trainers.weights.averaging import interpolate
from tuning.config.validation import load_config

FT = {"method.name": "ft"}
TRIALS: dict[str, dict[str, Any]] = {
    "FT, lr 6e-4": {**FT, "optim.lr": 6e-4},
    "FT, lr 1.2e-3": {**FT, "optim.lr": 1.2e-3},
    "Lipsum-FT, weight 0.3, lr 6e-4": {"method.reg_weight": 0.3, "optim.lr": 6e-4},
    "Lipsum-FT, weight 1, lr 1.2e-3": {"method.reg_weight": 1.0, "optim.lr": 1.2e-3},
    "Lipsum-FT, weight 1, lr 6e-4": {"method.reg_weight": 1.0, "optim.lr": 6e-4},
}
SHOWN = (ID_ACC, OOD_MEAN_ACC, MEAN_ACC)


def measure(name, seed, base):
    """The end, the chosen point and the best point of one training; in a process of its own."""
    torch.set_num_threads(1)
    changes = {**TRIALS[name], "seed": seed, "eval.line": "auto"}
    *_, last = fine_tune(with_overrides(base, changes, name))
    run, images = last.run, load_split(base, "val")
    at = {}
    for a in GRID:
        with holding(run, interpolate(run.initial, run.weights, a)):
            at[a] = measure_run(run, "val", images)
    best = max(GRID, key=lambda a: at[a][MEAN_ACC])
    found = {"end": at[1.0], "chosen": last.metrics, "best": at[best]}
    row = {f"{which}/{metric}": of[metric] for which, of in found.items() for metric in SHOWN}
    return {"name": name, "chosen/a": last.metrics["line/a"], "best/a": best, **row}


def print_cost(base, pairs):
    """Ratio of the CPU seconds of a trial with the line to those of one without, pair by pair."""
    torch.set_num_threads(1)
    ratios = []
    for _ in range(pairs):
        seconds = []
        for line in ("off", "auto"):
            *_, last = fine_tune(with_overrides(base, {"eval.line": line}, line))
            seconds.append(last.metrics["cost/cpu_seconds"])
        ratios.append(seconds[1] / seconds[0])
        print(f"{seconds[0]:.1f} s without, {seconds[1]:.1f} s with the line", flush=True)
    print(f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def print_recorded():
    """What the chosen points of the recorded trainings gain over the ends, and the eight best."""
    for file in sorted(Path(__file__).parent.glob("*.parquet")):
        last = [row for row in pq.read_table(file).to_pylist() if row["line/a"] is not None]
        chosen = np.array([row[MEAN_ACC] for row in last])
        ends = np.array([row[END + MEAN_ACC] for row in last])
        gain, best = chosen - ends, np.sort(chosen)[-8:].mean() - np.sort(ends)[-8:].mean()
        print(
            f"{file.stem}: {gain.mean():+.2f} ({gain.min():+.1f} to {gain.max():+.1f}) in "
            f"{len(last)} trainings; the eight best {best:+.2f}"
        )


def main():
    """Train, and print means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cost", type=int, metavar="N", help="measure the cost with N pairs")
    parser.add_argument("--recorded", action="store_true", help="compare recorded trainings")
    arguments = parser.parse_args()
    if arguments.recorded:
        print_recorded()
        return
    base = load_config("quickstart").trial
    resolve_root(base.data.root, progress=True)
    if arguments.cost:
        print_cost(base, arguments.cost)
        return
    jobs = [(name, seed, base) for name in TRIALS for seed in range(arguments.seeds)]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        rows = list(pool.map(measure, *zip(*jobs, strict=True)))
    print("| trial | at its end | chosen | a | best | a |\n|---|---|---|---|---|---|")
    for name in TRIALS:
        own = [row for row in rows if row["name"] == name]
        cells = [
            " / ".join(f"{fmean(row[f'{which}/{metric}'] for row in own):.1f}" for metric in SHOWN)
            for which in ("end", "chosen", "best")
        ]
        chosen, best = (", ".join(f"{row[f'{w}/a']:g}" for row in own) for w in ("chosen", "best"))
        print(f"| {name} | {cells[0]} | {cells[1]} | {chosen} | {cells[2]} | {best} |")


if __name__ == "__main__":
    main()
