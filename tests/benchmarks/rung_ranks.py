"""Which weights rank trials best at a rung? `python -m tests.benchmarks.rung_ranks FILE`

Spearman's correlation between a metric at each recorded step and the objective at the last one,
over the better half of the configurations of a file that `record_curves` wrote, each the mean of
its seeds, with 95 % bootstrap intervals over configurations. With `--rung-weights all`, a file has
the raw weights and those half-way to the zero-shot model beside the averaged ones.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import ConstantInputWarning, spearmanr

from tests.benchmarks.record_curves import RAW

WEIGHTS = {"rungs": "", "raw": RAW, "half-way to zero-shot": "wise/0.5/"}
"""Prefixes of the columns. Those of rungs are of the averaged weights, if the file has others."""

RESAMPLES = 2000


def rank_correlations(
    curves: pd.DataFrame, metric: str, objective: str, half_by: str | None = None
) -> Mapping[int, tuple[float, float, float]]:
    """Step -> correlation and its interval, for all steps before the last that have the metric."""
    numbers = curves.select_dtypes("number").drop(columns="seed")
    means = numbers.groupby(["configuration", "step"]).mean().reset_index()  # over seeds
    wide = means.pivot(index="configuration", columns="step")
    measure = wide[half_by or objective].iloc[:, -1]
    wide = wide[measure >= measure.median()]
    finals = wide[objective].iloc[:, -1]
    draws = np.random.default_rng(0).integers(len(finals), size=(RESAMPLES, len(finals)))
    last, found = finals.to_numpy(), {}
    for step in wide[metric].columns[:-1]:
        values = wide[metric, step].to_numpy()
        if not np.isnan(values).any():
            with warnings.catch_warnings():  # a draw of a single configuration has no correlation
                warnings.simplefilter("ignore", ConstantInputWarning)
                samples = [spearmanr(values[rows], last[rows]).statistic for rows in draws]
            low, high = np.nanpercentile(samples, [2.5, 97.5])
            found[step] = (float(spearmanr(values, last).statistic), float(low), float(high))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--objectives", nargs="+", default=["val/mean_acc", "id_val/acc", "ood_val/mean_acc"]
    )
    parser.add_argument("--half-by", help="metric of the better half; default: each objective")
    arguments = parser.parse_args()
    curves = pd.read_parquet(arguments.file)
    if "seed" not in curves:  # tables of older versions have a single one
        curves["seed"] = 0
    steps = sorted(curves["step"].unique())[:-1]
    table = Table("objective", "weights", *(f"step {step}" for step in steps))
    for objective in arguments.objectives:
        for weights, prefix in WEIGHTS.items():
            if prefix + objective in curves:
                found = rank_correlations(curves, prefix + objective, objective, arguments.half_by)
                cells = (
                    "{:.2f} [{:.2f}, {:.2f}]".format(*found[step]) if step in found else ""
                    for step in steps
                )
                table.add_row(objective, weights, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
