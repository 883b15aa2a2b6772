"""What is Lipsum-FT worth on the embedded benchmark? `python -m tests.benchmarks.phenomenon FOLDER`

Tunes plain fine-tuning and Lipsum-FT, each at the end of its trainings and on their lines, by one
search of this project on the validation splits. Trains what each search chose with fresh seeds,
reads the *test* splits once for each, and prints means with 95 % intervals of the paired
differences over seeds (Student's t). The benchmark was shaped to show the effect within minutes:
this table demonstrates the method, it is no evidence for it.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from tuning import load_config, load_run, run_search
from tuning.runs.confirmation import paired_difference

CONTENDERS = {
    "FT": ("ft", "off"),
    "FT on its line": ("ft", "auto"),
    "Lipsum-FT": ("lipsum_ft", "off"),
    "Lipsum-FT on its line": ("lipsum_ft", "auto"),
}
"""Method and `trial.eval.line`."""
PAIRS = (("FT on its line", "FT"), ("Lipsum-FT", "FT"), ("Lipsum-FT on its line", "FT on its line"))
FRESH_SEED = 1000


def tuned(name, folder, steps, trials):
    """The best trial of a search, of which one that has finished is not repeated."""
    method, line = CONTENDERS[name]
    run_name = name.replace(" ", "-").lower()
    file = load_config(
        "quickstart",
        [
            f"search.name={run_name}",
            f"search.storage={folder.absolute()}",
            f"search.space.name={method}",
            f"search.budget.trials={trials}",
            "search.scheduler={name: none}",
            "search.references=[]",
            f"trial.method={{name: {method}}}",
            f"trial.eval.line={line}",
            f"trial.eval.every={steps}",
            f"trial.steps={steps}",
        ],
    )
    if not (folder / run_name / "trials.parquet").is_file():
        run_search(file)
    best = load_run(folder / run_name).best
    print(f"{name}: {best.params}, {best.metrics['val/mean_acc']:.2f}", flush=True)
    return file.trial_config(best.params)


def test(name, seed, config):
    """Train to the end, then read the test splits once; runs in a process of its own."""
    torch.set_num_threads(1)  # a model this small gains more from two runs than from two threads
    *_, last = fine_tune(config.model_copy(update={"seed": seed}))
    metrics = evaluate_run(last.run, "test", load_split(config, "test"))
    return {"name": name, "seed": seed, "line/a": last.metrics.get("line/a", 1.0), **metrics}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the runs of the searches")
    parser.add_argument("--steps", type=int, default=300, help="more than the quickstart's")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    arguments = parser.parse_args()
    base = load_config("quickstart").trial
    tested = [(domain, "test") for domain in base.data.domains]
    resolve_root(base.data.root, [*base.data.trial_parts, *tested])
    configs = {
        name: tuned(name, arguments.folder, arguments.steps, arguments.trials)
        for name in CONTENDERS
    }
    seeds = range(FRESH_SEED, FRESH_SEED + arguments.seeds)
    jobs = [(name, seed, config) for seed in seeds for name, config in configs.items()]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        rows = list(pool.map(test, *zip(*jobs, strict=True)))
    before = start(base)
    zero_shot = evaluate_run(before, "test", load_split(base, "test"))
    Console(width=130).print(table(rows, zero_shot, base))


def table(rows, zero_shot, base):
    """Means over seeds, and the paired differences with their intervals."""
    columns = ["id_test/acc", "ood_test/mean_acc"]
    columns += [f"ood_test/{domain}/acc" for domain in base.data.ood_domains]
    shown = Table(title="Test accuracy in percent", caption="± 95 % interval, paired over seeds")
    for title in ("", base.data.id_domain, "OOD mean", *base.data.ood_domains, "point of the line"):
        shown.add_column(title, justify="right" if title else "left")
    shown.add_row("zero-shot", *(f"{zero_shot[column]:.1f}" for column in columns))
    of = {name: {row["seed"]: row for row in rows if row["name"] == name} for name in CONTENDERS}
    for name, by_seed in of.items():
        means = [f"{fmean(row[column] for row in by_seed.values()):.1f}" for column in columns]
        shown.add_row(name, *means, ", ".join(f"{row['line/a']:g}" for row in by_seed.values()))
    shown.add_section()
    for better, worse in PAIRS:
        cells = []
        for column in columns:
            ours, its = ({s: row[column] for s, row in of[n].items()} for n in (better, worse))
            found = paired_difference(ours, its)
            cells.append(f"{found.mean:+.1f} ± {(found.high - found.low) / 2:.1f}")
        shown.add_row(f"{better} - {worse}", *cells)
    return shown


if __name__ == "__main__":
    main()
