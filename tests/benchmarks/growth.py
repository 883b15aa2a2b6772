"""What does a search cost that has many trials? `python -m tests.benchmarks.growth`

Searches of instant trials, each in a process of its own, without Ray and MLflow: the CPU time of
the driver for each trial, of a resume of the finished run and of its page, the peak of the memory
that the search adds to its process, and the sizes of the journal, the page and the dashboard's
file. The last row has the exponents of the growth from the second-largest search to the largest;
an exponent of the driver is that of all its trials together, so 1 is linear.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.images import write_first_images
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, resume_instantly, run_instantly
from tuning.run import load_run
from tuning.views.dashboard import OPTUNA_FILE
from tuning.views.results import write_results

COLUMNS = {
    "driver, ms / trial": "{:.1f}",
    "resume, s": "{:.1f}",
    "page, s": "{:.1f}",
    "memory, MB": "{:.0f}",
    "journal, MB": "{:.2f}",
    "page, MB": "{:.2f}",
    "dashboard, MB": "{:.2f}",
}


def cpu_seconds(work, *arguments):
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(sampler, trials, folder):
    """The values of all columns."""
    write_first_images(folder / "images", ("bus", "cat"), train=1, val=1, test=1)
    sampling = {"name": sampler, "metric": "objective"}  # instant trials report no NLL
    changes = {"search__sampler": sampling, "search__budget__trials": trials}
    file = instant_file(folder / "images", folder / "runs", **changes)
    run, before = folder / "runs" / "small", peak_mb()
    with without_ray(mlflow=False, follows=True):
        searching = cpu_seconds(run_instantly, file)
        memory = peak_mb() - before
        resuming = cpu_seconds(resume_instantly, run)
    loaded = load_run(run)
    showing = cpu_seconds(write_results, loaded.search, loaded.history.records)
    files = (run / "journal.jsonl", run / "report" / "index.html", run / OPTUNA_FILE)
    sizes = [file.stat().st_size / 2**20 for file in files]
    return [1000 * searching / trials, resuming, showing, memory, *sizes]


def in_new_process(sampler, trials):
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        command = [sys.executable, "-m", __spec__.name, "--one", sampler, str(trials), folder]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(value) for value in found.split()[-len(COLUMNS) :]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 200, 1000, 5000])
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sampler, trials, folder = arguments.one
        return print(*measure(sampler, int(trials), Path(folder)))
    table = Table("trials", *COLUMNS, title=arguments.sampler)
    rows = {trials: in_new_process(arguments.sampler, trials) for trials in arguments.trials}
    for trials, row in rows.items():
        cells = [form.format(value) for form, value in zip(COLUMNS.values(), row, strict=True)]
        table.add_row(f"{trials:,}", *cells)
    if len(rows) > 1:
        (less, small), (more, large) = sorted(rows.items())[-2:]
        growth = [
            math.log(b / a) / math.log(more / less) for a, b in zip(small, large, strict=True)
        ]
        table.add_row("exponent", *(f"{g + (n == 0):.2f}" for n, g in enumerate(growth)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
