"""Does Lipsum-FT keep robustness on the embedded benchmark? `python -m tests.benchmarks.phenomenon`

Trains plain FT and Lipsum-FT on several seeds, reads the *test* splits once for each, and prints
means with 95 % intervals of the paired differences over seeds (Student's t). The hyperparameters
below were chosen on validation splits alone. The benchmark was shaped to show the effect within
minutes: this table demonstrates the method, it is no evidence for it.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from trainers.config import TrialConfig, with_overrides
from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.fine_tune import fine_tune
from trainers.loop.state import load_split, start
from tuning.config.validation import load_config
from tuning.confirmation.statistics import paired_difference

METHODS = {
    "FT": {"method": {"name": "ft"}},
    "Lipsum-FT": {
        "method": {"name": "lipsum_ft", "reg_weight": 0.3, "text_length": 8, "text_count": 80}
    },
}


def run(method: str, seed: int, base: TrialConfig) -> dict[str, Any]:
    """Train to the end, then read the test splits once; runs in a process of its own."""
    torch.set_num_threads(1)  # a model this small gains more from two runs than from two threads
    began = time.perf_counter()
    config = with_overrides(base, {**METHODS[method], "seed": seed}, method)
    *_, last = fine_tune(config)
    metrics = last.run.evaluate("test", load_split(config, "test"))
    seconds = time.perf_counter() - began
    return {"method": method, "seed": seed, "seconds": seconds, **metrics}


def main() -> None:
    """Train, print the table, and keep the figures as Parquet where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--steps", type=int, default=300, help="more than the quickstart's")
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    parser.add_argument("--output", type=Path, help="a Parquet file for all figures")
    arguments = parser.parse_args()
    base = load_config(arguments.config, [f"trial.steps={arguments.steps}"]).trial
    resolve_root(base.data.root, progress=True)
    before = start(base)
    before.evaluate("val", load_split(base, "val"))  # settles the temperature of calibration
    zero_shot = before.evaluate("test", load_split(base, "test"))
    rows: list[dict[str, Any]] = [{"method": "zero-shot", "seed": -1, "seconds": 0.0, **zero_shot}]
    jobs = [(method, seed, base) for seed in range(arguments.seeds) for method in METHODS]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        for row in pool.map(run, *zip(*jobs, strict=True)):
            rows.append(row)
            print(
                f"seed {row['seed']}  {row['method']:<10} id {row['id_test/acc']:.1f}  "
                f"ood {row['ood_test/mean_acc']:.1f}  {row['seconds']:.0f} s",
                flush=True,
            )
    if arguments.output:
        pq.write_table(pa.Table.from_pylist(rows), arguments.output)
    Console(width=110).print(table(rows, base))


def table(rows: list[dict[str, Any]], base: TrialConfig) -> Table:
    """Means over seeds, and the paired differences with their intervals."""
    columns = ["id_test/acc", "ood_test/mean_acc"]
    columns += [f"ood_test/{domain}/acc" for domain in base.data.ood_domains]
    titles = [base.data.id_domain, "OOD mean", *base.data.ood_domains]
    shown = Table(title="Test accuracy in percent", caption="± 95 % interval, paired over seeds")
    shown.add_column("")
    for title in titles:
        shown.add_column(title, justify="right")
    of = {
        method: [row for row in rows if row["method"] == method]
        for method in ("zero-shot", *METHODS)
    }
    for method, its in of.items():
        shown.add_row(method, *(f"{_mean(its, c):.1f}" for c in columns))
    shown.add_section()
    for better, worse in (("FT", "zero-shot"), ("Lipsum-FT", "zero-shot"), ("Lipsum-FT", "FT")):
        shown.add_row(
            f"{better} - {worse}", *(_difference(of[better], of[worse], c) for c in columns)
        )
    return shown


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return fmean(row[column] for row in rows)


def _difference(better: list[dict[str, Any]], worse: list[dict[str, Any]], column: str) -> str:
    """Mean and half the 95 % interval of the differences seed by seed."""
    ours, its = ({row["seed"]: row[column] for row in rows} for rows in (better, worse))
    if -1 in its:  # the zero-shot model is one row: no seed changes it
        its = dict.fromkeys(ours, its[-1])
    found = paired_difference(ours, its)
    return f"{found.mean:+.1f} ± {(found.high - found.low) / 2:.1f}"


if __name__ == "__main__":
    main()
