"""Real searches of the quickstart, each with changes: `python -m tests.benchmarks.real_searches`

Shown are the best `val/mean_acc` of each search as it was searched, that of its best trial on the
test splits, over three fresh seeds (`--confirm`), and the seconds of its trials, of which two run
at a time. Each search is written to the folder `--out`, so the command may be interrupted.
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
from tuning import confirm, load_config, run_search
from tuning.runs.confirmation import paired_difference

SEARCHES = {
    "quickstart": [],
    "quickstart, no line": ["trial.eval.line=off"],
    "12 trials": ["search.budget.trials=12"],
    "12 trainings, seeds raced": ["search.budget.trials=12", "search.seeds={}"],
}
"""What each changes of the ready configuration."""


def search(seed, storage, changes, is_confirmed):
    """A search by this project, without the reference."""
    settings = [f"trial.seed={seed}", f"search.sampler.seed={seed}", f"search.storage={storage}"]
    settings += ["search.resources.max_concurrent=2", "search.references=[]", *changes]
    result = run_search(load_config("quickstart", settings), console=Console(quiet=True))
    best = result.best
    found = {
        "params": best.params,
        "val/mean_acc": best.metrics["val/mean_acc"],
        "seconds": sum(trial.seconds or 0.0 for trial in result.history.records),
    }
    if is_confirmed:
        folder, quiet = result.folder, Console(quiet=True)
        means = confirm(folder, seeds=3, rules=["objective"], console=quiet).means(best.trial_id)
        id_acc, ood_acc = means["id_test/acc"], means["ood_test/mean_acc"]
        found |= {"test/mean_acc": (id_acc + ood_acc) / 2, "id_test": id_acc, "ood_test": ood_acc}
    return found


def summary(found, metric):
    """What each search is worth, mean and range over its seeds, and beside the first, by seed."""
    shown = Table(title=f"{metric} of the best trials")
    for title in ("", "searches", metric, "- first [95 % interval]", "s", "/ first"):
        shown.add_column(title, justify="right" if title else "left")
    values, seconds = (
        {name: {seed: of[key] for seed, of in searches.items()} for name, searches in found.items()}
        for key in (metric, "seconds")
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
    """Run what has not been run, one search after the other for each seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES)[:2])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--confirm", action="store_true", help="on three fresh seeds and the test")
    arguments = parser.parse_args()
    path = arguments.out / "searches.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = load_config("quickstart").trial.data
    resolve_root(data.root, data.trial_parts)
    found = json.loads(path.read_text()) if path.is_file() else {}
    storage = (arguments.out / "runs").absolute()
    for seed in map(str, range(arguments.seeds)):
        for name in arguments.searches:
            of_name = found.setdefault(name, {})
            if seed not in of_name:
                of_name[seed] = search(seed, storage, SEARCHES[name], arguments.confirm)
                path.write_text(json.dumps(found, indent=1) + "\n")
                print(name, seed, of_name[seed], flush=True)
    for metric in ("val/mean_acc", *(["test/mean_acc"] if arguments.confirm else [])):
        Console(width=150).print(summary(found, metric))


if __name__ == "__main__":
    main()
