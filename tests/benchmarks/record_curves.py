"""Record real learning curves for the simulator: `python -m tests.benchmarks.record_curves FILE`

Trains points of the quickstart's space on the embedded benchmark at full length, each with its line
(`trial.eval.line: auto`) and evaluated on the *validation* splits at four steps, as in a search of
the quickstart. With `--photographs OUT`, the trial is that of `tests.benchmarks.photographs`, which
has made its model and its images in OUT, and is evaluated at its last step. That row has the
metrics at the chosen point, as `end/...` those at the end of the training, and as `averaged/...`
those at the same point of the line to the moving average of the weights over the last quarter.

The points are a Sobol sequence, so they cover the space evenly, whatever their number; the length
of the random texts is fixed, as it hardly matters. `--predictions` keeps the predictions on
validation images as well. What the file holds already is not trained again, so the command may be
interrupted, and may be given more points or seeds.
"""

import argparse
import io
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.benchmarks.photographs import __main__ as photographs
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import holding, measure
from trainers.loop.state import load_split
from trainers.models.averaging import interpolate
from tuning.config.validation import load_config

DOMAINS = ("real", "painting", "clipart", "infograph", "sketch")
COSTS = ("cost/seconds", "cost/eval_seconds", "cost/cpu_seconds")
END, AVERAGED = "end/", "averaged/"
SPACE = b"space"
"""Key of the searched parameters in the metadata of a file."""
TEXTS = "method.text_length: {type: categorical, choices: [8]}"


def record(number, params, config):
    """The rows of one configuration, one a report, and its predictions as a Parquet file.

    Runs in a process of its own.
    """
    torch.set_num_threads(1)
    rows, predictions = list[dict[str, Any]](), None
    try:
        for report in fine_tune(config):
            found = dict(report.metrics)
            if report.step == config.steps:
                run, images = report.run, load_split(config, "val")
                predictions = run.predictions
                points = ((END, run.weights, 1.0), (AVERAGED, run.ema, found["line/a"]))
                for prefix, weights, a in points:
                    with holding(run, interpolate(run.initial, weights, a)):
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
    return rows, predictions


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


def drawings(id_domain, every):
    """The quickstart with its line, and rungs as searches with early stopping use them."""
    ood = [domain for domain in DOMAINS if domain != id_domain]
    overrides = [
        f"trial.eval.every={every}",
        "trial.eval.rung_images=200",
        "trial.eval.rung_weights=averaged",
        f"trial.data.id_domain={id_domain}",
        f"trial.data.ood_domains=[{', '.join(ood)}]",
        f"search.space.parameters={{{TEXTS}}}",
    ]
    return load_config("quickstart", overrides)


def of_photographs(out):
    """The trial of the benchmark of photographs, with the ranges of its searches."""
    given = photographs.settings(photographs.inputs(out))
    ranges = given["search.space.parameters"].removesuffix("}")
    given |= {"search.space.parameters": f"{ranges}, {TEXTS}}}"}
    return photographs.configuration(given | {"trial.eval.rung_weights": "averaged"})


def predictions_of(key, content):
    """A row for each domain: labels and predicted classes of its validation images."""
    table = pq.read_table(io.BytesIO(content)).to_pandas()
    return [
        {**key, "domain": str(domain), **of[["label", "predicted"]].to_dict("list")}
        for domain, of in table.groupby("domain", observed=True)
    ]


def main():
    """Train what the table lacks, and write it after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--id-domain", choices=DOMAINS, default="real")
    parser.add_argument("--every", type=int, default=30, help="steps between evaluations")
    parser.add_argument("--photographs", type=Path, metavar="OUT")
    parser.add_argument("--predictions", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.photographs:
        file = of_photographs(arguments.photographs)
    else:
        file = drawings(arguments.id_domain, arguments.every)
    rows, predicted = (
        pq.read_table(path).to_pylist() if path and path.is_file() else []
        for path in (arguments.file, arguments.predictions)
    )
    recorded = {(row["configuration"], row["seed"]) for row in rows}
    points = sobol(file, arguments.configurations)
    wanted = [(n, seed) for seed in range(arguments.seeds) for n in range(len(points))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(record, n, points[n], file.trial_config({**points[n], "seed": seed}))
            for n, seed in wanted
            if (n, seed) not in recorded
        ]
        for job in as_completed(jobs):
            found, content = job.result()
            rows += found
            rows.sort(key=lambda row: (row["configuration"], row["seed"], row["step"]))
            columns = dict.fromkeys(key for row in rows for key in row)  # the last rows have more
            table = pa.table({key: [row.get(key) for row in rows] for key in columns})
            space = file.search_space().model_dump_json().encode()
            pq.write_table(table.replace_schema_metadata({SPACE: space}), arguments.file)
            if arguments.predictions and content is not None:
                key = {name: found[-1][name] for name in ("configuration", "seed")}
                predicted += predictions_of(key, content)
                types = {"label": pa.list_(pa.int16()), "predicted": pa.list_(pa.int16())}
                arrays = {
                    k: pa.array([r[k] for r in predicted], types.get(k)) for k in predicted[0]
                }
                pq.write_table(pa.table(arrays), arguments.predictions, compression="zstd")
            done = {(row["configuration"], row["seed"]) for row in rows}
            print(f"{len(done)} of {len(wanted)}", flush=True)


if __name__ == "__main__":
    main()
