"""Record trainings for the simulator: `python -m tests.benchmarks.simulate.record FILE`

Trains points all over the space of the quickstart, or with `--photographs OUT` of the benchmark of
photographs, which has made its model and its images in OUT. Each row has the *validation* metrics
of the last report of a training, at the chosen point of its line. Ranges of real numbers are
searched; other parameters, such as the length of random texts, hardly matter and stay as they are.

The points are a Sobol sequence, so they cover the space evenly, whatever their number. What the
file holds is not trained again: the command may be interrupted, and given more points or seeds.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import qmc

from search_spaces import Float
from tests.benchmarks.photographs import __main__ as photographs
from tests.benchmarks.simulate.surface import SPACE
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune
from tuning.config.validation import load_config

CPU_SECONDS = "cost/cpu_seconds"


def last_metrics(config):
    """Accuracies, NLLs and cost of a training; empty if it diverged. In a process of its own."""
    torch.set_num_threads(1)
    try:
        *_, last = fine_tune(config)
    except TrainingDiverged:
        return {}
    chosen = ("line/a", CPU_SECONDS)
    measures = ("/acc", "/nll", "/mean_acc", "/mean_nll")
    return {
        name: value
        for name, value in last.metrics.items()
        if name in chosen or name.endswith(measures)
    }


def sobol(space, number):
    """The first points of a scrambled Sobol sequence in a space."""
    sequence = qmc.Sobol(len(space.parameters), seed=0)
    return [
        {key: p.at(unit) for (key, p), unit in zip(space.parameters.items(), units, strict=True)}
        for units in sequence.random(number).tolist()
    ]


def write_table(path, rows, space):
    """Replace the file at once, so that a kill leaves the earlier one or the new one."""
    frame = pd.DataFrame(rows).sort_values(["configuration", "seed"])
    table = pa.Table.from_pandas(frame, preserve_index=False)
    unfinished = path.with_suffix(".unfinished")
    metadata = {SPACE: space.model_dump_json().encode()}
    pq.write_table(table.replace_schema_metadata(metadata), unfinished)
    unfinished.replace(path)


def main():
    """Train what the table lacks, and write it after each training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--photographs", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.photographs:
        file = photographs.configuration(photographs.settings(arguments.photographs, "photo"))
    else:
        file = load_config("quickstart")
    space = file.search_space()
    varied = {key: p for key, p in space.parameters.items() if isinstance(p, Float)}
    space = space.model_copy(update={"parameters": varied, "initial_points": []})
    rows = pq.read_table(arguments.file).to_pylist() if arguments.file.is_file() else []
    recorded = {(row["configuration"], row["seed"]) for row in rows}
    points = sobol(space, arguments.configurations)
    wanted = [(n, seed) for seed in range(arguments.seeds) for n in range(len(points))]
    missing = [key for key in wanted if key not in recorded]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(last_metrics, file.trial_config({**points[n], "seed": seed})): (n, seed)
            for n, seed in missing
        }
        for done, job in enumerate(as_completed(jobs), 1):
            number, seed = jobs[job]
            key = {"configuration": number, "seed": seed}
            rows.append({**key, **points[number], **job.result()})
            write_table(arguments.file, rows, space)
            print(f"{done} of {len(missing)}", flush=True)


if __name__ == "__main__":
    main()
