"""Record real learning curves for the simulator: `python -m tests.benchmarks.record_curves FILE`

Trains points of the quickstart's space on the embedded benchmark at full length, each with its line
(`trial.eval.line: auto`) and evaluated on the *validation* splits at four steps, as in a search of
the quickstart. The last row of a training has the metrics at the chosen point, as `end/...` those
at the end of the training, and as `beyond/...` those a quarter of the line beyond it, where no
trial looks. The points are a Sobol sequence, so they cover the space evenly, whatever their number;
the length of the random texts is fixed, as it hardly matters. What the file holds already is not
trained again, so the command may be interrupted.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import holding, measure
from trainers.loop.state import load_split
from trainers.models.averaging import interpolate
from tuning.config.validation import load_config

DOMAINS = ("real", "painting", "clipart", "infograph", "sketch")
COSTS = ("cost/seconds", "cost/eval_seconds", "cost/cpu_seconds")
END, BEYOND = "end/", "beyond/"


def record(number, params, config):
    """The rows of one configuration, one a report; runs in a process of its own."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    try:
        for report in fine_tune(config):
            found = dict(report.metrics)
            if report.step == config.steps:
                run, images = report.run, load_split(config, "val")
                for prefix, a in ((END, 1.0), (BEYOND, 1.25)):
                    with holding(run, interpolate(run.initial, run.weights, a)):
                        at_point = measure(run, "val", images)
                    found |= {prefix + name: value for name, value in at_point.items()}
            metrics = {
                name: value
                for name, value in found.items()
                if name.endswith(("acc", "nll")) or name in (*COSTS, "train/loss", "line/a")
            }
            key = {"configuration": number, "seed": config.seed}
            rows.append({**key, **params, "step": report.step, **metrics})
    except TrainingDiverged:
        pass  # the curve ends here, as it would in a search
    return rows


def sobol(file, count):
    """The first points of a scrambled Sobol sequence in the file's space."""
    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(scramble=True, seed=0))
    distributions = file.search_space().distributions()
    points = []
    for _ in range(count):
        trial = study.ask(distributions)
        points.append(dict(trial.params))
        study.tell(trial, 0.0)
    return points


def main():
    """Train what the table lacks, and write it after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--id-domain", choices=DOMAINS, default="real")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ood = [domain for domain in DOMAINS if domain != arguments.id_domain]
    overrides = [
        "trial.eval.every=30",
        "trial.eval.rung_images=200",
        "trial.eval.rung_weights=averaged",
        "trial.eval.line=auto",
        f"trial.data.id_domain={arguments.id_domain}",
        f"trial.data.ood_domains=[{', '.join(ood)}]",
        "search.space.parameters={method.text_length: {type: categorical, choices: [8]}}",
    ]
    file = load_config("quickstart", overrides)
    resolve_root(file.trial.data.root, file.trial.data.trial_parts)
    rows = pq.read_table(arguments.file).to_pylist() if arguments.file.is_file() else []
    recorded = {(row["configuration"], row["seed"]) for row in rows}
    points = sobol(file, arguments.configurations)
    wanted = [(n, seed) for seed in range(arguments.seeds) for n in range(len(points))]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        jobs = [
            pool.submit(record, n, points[n], file.trial_config({**points[n], "seed": seed}))
            for n, seed in wanted
            if (n, seed) not in recorded
        ]
        for job in as_completed(jobs):
            rows += job.result()
            rows.sort(key=lambda row: (row["configuration"], row["seed"], row["step"]))
            columns = dict.fromkeys(key for row in rows for key in row)  # the last rows have more
            table = {key: [row.get(key) for row in rows] for key in columns}
            pq.write_table(pa.table(table), arguments.file)
            done = {(row["configuration"], row["seed"]) for row in rows}
            print(f"{len(done)} of {len(wanted)}", flush=True)


if __name__ == "__main__":
    main()
