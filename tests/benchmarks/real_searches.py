"""The quickstart with and without lines: `python -m tests.benchmarks.real_searches --out FOLDER`

The ready configuration as it is, with ten seeds, and the same with `trial.eval.line=off`. Shown are
the best `val/mean_acc` of each search as it was searched, and the seconds of its trials, of which
two run at a time. Each search is written to the folder, so the command may be interrupted.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, median

import optuna
from rich.console import Console
from rich.table import Table

from tests.benchmarks.spread import spread
from trainers.data.data_root import resolve_root
from tuning import load_config, run_search
from tuning.confirmation.results import paired_difference

METRIC, SEEDS = "val/mean_acc", 10
SEARCHES = {"quickstart": [], "quickstart, no line": ["trial.eval.line=off"]}
"""What each changes of the ready configuration."""


def search(seed, storage, changes):
    """A search by this project, without the reference."""
    settings = [f"trial.seed={seed}", f"search.sampler.seed={seed}", f"search.storage={storage}"]
    settings += ["search.resources.max_concurrent=2", "search.references=[]", *changes]
    result = run_search(load_config("quickstart", settings), console=Console(quiet=True))
    seconds = sum(trial.seconds or 0.0 for trial in result.history.records)
    best = result.best
    return {"params": best.params, "value": best.metrics[METRIC], "seconds": seconds}


def summary(found):
    """What each search is worth, mean and range over its seeds, and beside the first, by seed."""
    shown = Table(title=f"{METRIC} of the best trials as searched")
    for title in ("", "searches", METRIC, "- first [95 % interval]", "s", "/ first"):
        shown.add_column(title, justify="right" if title else "left")
    values, seconds = (
        {name: {seed: of[key] for seed, of in searches.items()} for name, searches in found.items()}
        for key in ("value", "seconds")
    )
    first = next(iter(found))
    for name, own in values.items():
        gap = paired_difference(own, values[first])
        ratios = [
            seconds[name][seed] / seconds[first][seed] for seed in own.keys() & seconds[first]
        ]
        shown.add_row(
            name,
            str(len(own)),
            spread(list(own.values()), middle=fmean),
            f"{gap.mean:+.2f} [{gap.low:.2f}, {gap.high:.2f}]",
            spread(list(seconds[name].values()), ".0f", fmean),
            spread(ratios, middle=median),
        )
    return shown


def main():
    """Run what has not been run, one search after the other for each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    arguments = parser.parse_args()
    path = arguments.out / "searches.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    resolve_root(load_config("quickstart").trial.data.root, progress=True)
    found = json.loads(path.read_text()) if path.is_file() else {}
    for seed in map(str, range(SEEDS)):
        for name in arguments.searches:
            of_name = found.setdefault(name, {})
            if seed not in of_name:
                of_name[seed] = search(seed, (arguments.out / "runs").absolute(), SEARCHES[name])
                path.write_text(json.dumps(found, indent=1) + "\n")
                print(name, seed, of_name[seed], flush=True)
    Console(width=150).print(summary(found))


if __name__ == "__main__":
    main()
