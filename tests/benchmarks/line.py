"""What a point of the line is worth beside the end of a training, and what it costs.

`python -m tests.benchmarks.line --recorded` compares chosen points and ends in the recorded
trainings of `simulate`. `--cost N` trains N pairs of the quickstart's trial without and with the
line, one after the other, and prints the ratios of their CPU time.
"""

import argparse
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import torch

from tests.benchmarks.record_curves import END
from trainers.config import with_overrides
from trainers.data.data_root import resolve_root
from trainers.evaluation.metrics import MEAN_ACC
from trainers.fine_tune import fine_tune
from tuning.config.validation import load_config


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--cost", type=int, metavar="N", help="measure the cost with N pairs")
    asked.add_argument("--recorded", action="store_true", help="compare recorded trainings")
    arguments = parser.parse_args()
    if arguments.recorded:
        print_recorded()
    else:
        base = load_config("quickstart").trial
        resolve_root(base.data.root, progress=True)
        print_cost(base, arguments.cost)


if __name__ == "__main__":
    main()
