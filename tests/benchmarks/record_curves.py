"""Record real learning curves for the simulator: `python -m tests.benchmarks.record_curves`

Trains configurations of the quickstart's space on the embedded benchmark at full length, each
evaluated eight times on the *validation* splits, into `curves.parquet` beside this file. The points
are a Sobol sequence, so they cover the space evenly, whatever their number. Takes half a minute of
one core each; what the table holds already is not trained again, so the command may be interrupted.

`--plane` fixes the length of random texts, which hardly matters; `--seeds` trains each point
several times; `--id-domain` fine-tunes on another domain and `--model` another model, a folder that
`tests.benchmarks.pretrain` wrote, for a table on which nothing was chosen:

    python -m tests.benchmarks.record_curves --plane --configurations 48 --seeds 2 \\
        --id-domain sketch --output sketch.parquet

`--rung-weights all` evaluates at T/8, T/4, T/2 and 3T/4 of the T steps the raw weights (`raw/...`)
and those half-way to the zero-shot model (`wise/0.5/...`) beside the averaged ones, to tell which
of them rank best. Takes a minute of one core each.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainers.config import TrialConfig
from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune
from trainers.loop.state import LINE_METRICS, load_split
from trainers.weights.averaging import interpolate
from trainers.weights.export import MERGES
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config

CURVES = Path(__file__).with_name("curves.parquet")
TEXT_LENGTH = "method.text_length"
OOD_DOMAINS = ("painting", "clipart", "infograph", "sketch")
COSTS = ("cost/seconds", "cost/eval_seconds", "cost/cpu_seconds")
KEPT = ("train/loss", *COSTS)
RAW = "raw/"


def record(
    number: int, params: dict[str, Any], config: TrialConfig, *, all_weights: bool = False
) -> list[dict[str, Any]]:
    """The rows of one configuration, one a report; runs in a process of its own."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    images = load_split(config, "val") if all_weights else {}
    compared = [config.steps * part // 8 for part in (1, 2, 4, 6)] if all_weights else []
    extra = dict.fromkeys(COSTS, 0.0)  # spent on the comparison, which no search would do
    try:
        for report in fine_tune(config):
            found = report.metrics | {
                name: report.metrics[name] - seconds for name, seconds in extra.items()
            }
            if report.step in compared:
                wall, cpu = time.perf_counter(), time.process_time()
                run = report.run
                raw = run.evaluate("val", images)
                with run.holding(interpolate(run.initial, run.weights, 0.5)):
                    half = run.measure("val", images, run.temperature)
                found |= {f"wise/0.5/{name}": half[name] for name in LINE_METRICS if name in half}
                extra["cost/seconds"] += time.perf_counter() - wall
                extra["cost/cpu_seconds"] += time.process_time() - cpu
            else:
                raw = report.metrics if all_weights and report.step == config.steps else {}
            found |= {RAW + name: value for name, value in raw.items()}
            metrics = {
                name: value
                for name, value in found.items()
                if name.endswith(("/acc", "_acc", "/nll", "_nll")) or name in KEPT
            }
            key = {"configuration": number, "seed": config.seed}
            rows.append({**key, **params, "step": report.step, **metrics})
    except TrainingDiverged:
        pass  # the curve ends here, as it would in a search
    return rows


def sobol(file: SearchFile, count: int) -> list[dict[str, Any]]:
    """The first points of a scrambled Sobol sequence in the file's space."""
    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(scramble=True, seed=0))
    distributions = file.search_space().distributions()
    points = []
    for _ in range(count):
        trial = study.ask(distributions)
        points.append(dict(trial.params))
        study.tell(trial, 0.0)
    return points


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Keys of the quickstart that a recording changes."""
    ood = [d for d in ("real", *OOD_DOMAINS) if d != arguments.id_domain]
    changed = [
        "trial.eval.every=15",
        "trial.eval.rung_images=0",
        f"trial.eval.rung_weights={arguments.rung_weights}",
    ]
    if arguments.rung_weights == "all":
        changed[-1:] = ["trial.eval.rung_weights=averaged"]
    changed.append(f"trial.data.id_domain={arguments.id_domain}")
    changed.append(f"trial.data.ood_domains=[{', '.join(ood)}]")
    if arguments.model:
        folder = arguments.model.absolute()
        model = f"{{name: 'local-dir:{folder}', tokenizer: '{folder / MERGES}'}}"
        changed.append(f"trial.model={model}")
    if arguments.plane:
        whole = "{type: categorical, choices: [8]}"
        changed.append(f"search.space.parameters.{TEXT_LENGTH}={whole}")
    return changed


def main() -> None:
    """Train what the table lacks, and write it after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=256)
    parser.add_argument("--output", type=Path, default=CURVES)
    parser.add_argument("--rung-weights", choices=("raw", "averaged", "all"), default="raw")
    parser.add_argument("--plane", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--id-domain", choices=("real", *OOD_DOMAINS), default="real")
    parser.add_argument("--model", type=Path, help="instead of tiny-clip")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = load_config("quickstart", overrides(arguments))
    resolve_root(file.trial.data.root, progress=True)
    rows = pq.read_table(arguments.output).to_pylist() if arguments.output.is_file() else []
    rows = [{"seed": 0, **row} for row in rows]  # older tables have a single seed
    recorded = {(row["configuration"], row["seed"]) for row in rows}
    points = sobol(file, arguments.configurations)
    wanted = [(n, seed) for seed in range(arguments.seeds) for n in range(len(points))]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                record,
                n,
                points[n],
                file.trial_config({**points[n], "seed": seed}),
                all_weights=arguments.rung_weights == "all",
            )
            for n, seed in wanted
            if (n, seed) not in recorded
        ]
        for job in as_completed(jobs):
            rows += job.result()
            rows.sort(key=lambda row: (row["configuration"], row["seed"], row["step"]))
            pq.write_table(pa.Table.from_pylist(rows), arguments.output)
            done = {(row["configuration"], row["seed"]) for row in rows}
            print(f"{len(done)} of {len(wanted)}", flush=True)


if __name__ == "__main__":
    main()
