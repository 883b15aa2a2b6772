"""What a point of the line is worth beside the end of a training, and what it costs.

`python -m tests.benchmarks.line --recorded` compares chosen points and ends in the recorded
trainings of `simulate`. `--hints` checks what the lines of these tell about their learning rates.
`--cost N` trains N pairs of the quickstart's trial without and with the line, one after the other,
and prints the ratios of their CPU time.
"""

import argparse
from statistics import median
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import torch

from tests.benchmarks.curve_table import RECORDED
from tests.benchmarks.record_curves import END
from trainers.config import with_overrides
from trainers.data.data_root import resolve_root
from trainers.evaluation.metrics import MEAN_ACC
from trainers.fine_tune import fine_tune
from tuning.config.validation import load_config
from tuning.runs.records import TrialRecord
from tuning.views.lines import learning_rate_hint


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
    for file in RECORDED:
        last = [row for row in pq.read_table(file).to_pylist() if row["line/a"] is not None]
        chosen = np.array([row[MEAN_ACC] for row in last])
        ends = np.array([row[END + MEAN_ACC] for row in last])
        gain, best = chosen - ends, np.sort(chosen)[-8:].mean() - np.sort(ends)[-8:].mean()
        print(
            f"{file.stem}: {gain.mean():+.2f} ({gain.min():+.1f} to {gain.max():+.1f}) in "
            f"{len(last)} trainings; the eight best {best:+.2f}"
        )


def print_hints():
    """Where a line calls its learning rate too high or too low: how often another is better.

    By cubics in the logarithm of the learning rate, fitted to the trainings whose regulariser has a
    small weight, at the chosen points and at the ends of training.
    """
    for file in RECORDED:
        rows = [row for row in pq.read_table(file).to_pylist() if row["line/a"] is not None]
        rows = [row for row in rows if row["method.reg_weight"] < 1]
        lrs = np.log10([row["optim.lr"] for row in rows])
        search = SimpleNamespace(ood_domains=["some"], configured=lambda *_: "")
        records = [TrialRecord("ft", -1, "reference", {}, curve=(row,)) for row in rows]
        hints = [learning_rate_hint(search, record) for record in records]
        for said, factor in (("too high", 1 / 3), ("too low", 3)):
            at = np.array([said in hint for hint in hints])
            other = np.clip(lrs + np.log10(factor), lrs.min(), lrs.max())
            better = []
            for name in (MEAN_ACC, END + MEAN_ACC):
                fit = np.polynomial.Polynomial.fit(lrs, [row[name] for row in rows], 3)
                better.append((fit(other) > fit(lrs))[at].sum())
            print(
                f"{file.stem}: {said} in {at.sum()} of {len(rows)}; {factor:.2g} times as high is "
                f"better at the chosen point in {better[0]}, at the end in {better[1]}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--cost", type=int, metavar="N", help="measure the cost with N pairs")
    asked.add_argument("--recorded", action="store_true", help="compare recorded trainings")
    asked.add_argument("--hints", action="store_true", help="check what lines say about lr")
    arguments = parser.parse_args()
    if arguments.recorded:
        print_recorded()
    elif arguments.hints:
        print_hints()
    else:
        base = load_config("quickstart").trial
        resolve_root(base.data.root, base.data.trial_parts)
        print_cost(base, arguments.cost)


if __name__ == "__main__":
    main()
