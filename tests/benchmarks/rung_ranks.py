"""What ranks trials best at a rung? `python -m tests.benchmarks.rung_ranks FILE`

Spearman's correlation between a metric at each recorded step and the objective at the last one,
over the better half of the configurations of a file that `record_curves` wrote, each the mean of
its seeds, with 95 % bootstrap intervals over configurations. The metric is the objective itself, or
the NLL that belongs to it, of which less is better. With `--rung-weights all`, a file has the raw
weights and those half-way to the zero-shot model, without their NLL, beside the averaged ones.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import ConstantInputWarning, spearmanr

from tests.benchmarks.record_curves import RAW
from tuning.algorithms.objectives import Objective, sampler_objectives

WEIGHTS = {"rungs": "", "raw": RAW, "half-way to zero-shot": "wise/0.5/"}
"""Prefixes of the columns. Those of rungs are of the averaged weights, if the file has others."""

RESAMPLES = 2000


def rank_correlations(
    curves: pd.DataFrame, metric: str, objective: str, half_by: str | None = None
) -> Mapping[int, tuple[float, float, float]]:
    """Step -> correlation and its interval, for all steps before the last that have the metric.

    An NLL counts with the opposite sign: a positive correlation is a good one for all metrics.
    """
    numbers = curves.select_dtypes("number").drop(columns="seed")
    means = numbers.groupby(["configuration", "step"]).mean().reset_index()  # over seeds
    wide = means.pivot(index="configuration", columns="step")
    measure = wide[half_by or objective].iloc[:, -1]
    wide = wide[measure >= measure.median()]
    finals = wide[objective].iloc[:, -1]
    draws = np.random.default_rng(0).integers(len(finals), size=(RESAMPLES, len(finals)))
    last, found = finals.to_numpy(), {}
    sign = -1 if metric.endswith("nll") else 1
    for step in wide[metric].columns[:-1]:
        values = sign * wide[metric, step].to_numpy()
        if not np.isnan(values).any():
            with warnings.catch_warnings():  # a draw of a single configuration has no correlation
                warnings.simplefilter("ignore", ConstantInputWarning)
                samples = [spearmanr(values[rows], last[rows]).statistic for rows in draws]
            low, high = np.nanpercentile(samples, [2.5, 97.5])
            found[step] = (float(spearmanr(values, last).statistic), float(low), float(high))
    return found


def read_curves(file: Path) -> pd.DataFrame:
    """A file that `record_curves` wrote, with the columns that older versions left out."""
    curves = pd.read_parquet(file)
    if "seed" not in curves:
        curves["seed"] = 0
    if "val/mean_nll" not in curves:
        curves["ood_val/mean_nll"] = curves.filter(regex="^ood_val/[^/]+/nll$").mean(axis=1)
        curves["val/mean_nll"] = np.sqrt(curves["id_val/nll"] * curves["ood_val/mean_nll"])
    return curves


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--objectives", nargs="+", default=["val/mean_acc", "id_val/acc", "ood_val/mean_acc"]
    )
    parser.add_argument("--half-by", help="metric of the better half; default: each objective")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all")
    arguments = parser.parse_args(argv)
    curves = read_curves(arguments.file)
    if arguments.seeds:
        curves = curves[curves["seed"].isin(arguments.seeds)]
    steps = sorted(curves["step"].unique())[:-1]
    table = Table("objective", "ranked by", "weights", *(f"step {step}" for step in steps))
    for objective in arguments.objectives:
        (nll,) = sampler_objectives("auto", [Objective(objective)])
        for metric in dict.fromkeys((objective, nll.metric)):
            for weights, prefix in WEIGHTS.items():
                name = prefix + metric
                if name in curves:
                    found = rank_correlations(curves, name, objective, arguments.half_by)
                    cells = (
                        "{:.2f} [{:.2f}, {:.2f}]".format(*found[step]) if step in found else ""
                        for step in steps
                    )
                    table.add_row(objective, metric, weights, *cells)
    Console(width=240).print(table)


if __name__ == "__main__":
    main()
