"""Are trainings unchanged between commits? `python -m tests.benchmarks.same_trials COMMIT [COMMIT]`

Runs a ready configuration of two commits one after the other on this machine, in work trees and
caches of their own with the packages of this environment. The second is by default HEAD, and a run
folder of an earlier call may stand for either. Compares all metrics of the reference and of the
trials at given points to the last digit; costs and rates are left out. The status is 1 if one
differs. A metric that only one commit has is named and does not count. With `--set trial.steps=12
trial.eval.every=12` it is a quicker look. A point of each method:

    same_trials COMMIT --config methods --set search.prior.points=1 search.budget.trials=16
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GIVEN = 4
"""Points of the quickstart's prior."""
OF_TIME = ("cost/", "train/images_per_s")


def search(commit, config, out, changes):
    """The run folder of a ready configuration at that commit, with other values for keys."""
    folder = out / commit
    run = folder / "runs" / config
    if not run.is_dir():
        tree = folder / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True)
        try:
            changes = [f"search.budget.trials={GIVEN}", *changes]
            changes += [f"search.storage={run.parent.absolute()}", f"search.name={config}"]
            options = [word for change in changes for word in ("--set", change)]
            command = [sys.executable, "-m", "tuning", "search", config, *options]
            env = os.environ | {"PYTHONPATH": str(tree.absolute())}
            env |= {"XDG_CACHE_HOME": str((folder / "cache").absolute())}
            subprocess.run(command, cwd=tree, env=env, check=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return run


def trainings(run):
    """Metrics by step of each training whose point was given, by kind and parameters."""
    text = (run / "journal.jsonl").read_text(encoding="utf-8")
    events = [json.loads(line) for line in text.splitlines()]
    names = {}
    for event in events:
        if event["event"] == "started" and (event["kind"] != "trial" or event.get("first_point")):
            names[event["trial"]] = f"{event['kind']} {json.dumps(event['params'], sort_keys=True)}"
    found = {}
    for event in events:
        if event["event"] == "zero_shot":
            found["zero-shot"] = {0: event["metrics"]}
        elif event["event"] == "report" and event["trial"] in names:
            report = event["report"]
            found.setdefault(names[event["trial"]], {})[int(report["step"])] = report
    return found


def compared(first, second):
    """Number of equal metrics, lines that name different ones, and metrics that one side lacks."""
    equal, different, alone = 0, [], set()
    for training in first.keys() & second.keys():
        steps = first[training].keys() | second[training].keys()
        for step in sorted(steps):
            before = first[training].get(step, {})
            after = second[training].get(step, {})
            alone |= {name for name in before.keys() ^ after.keys() if not name.startswith(OF_TIME)}
            for name in sorted(before.keys() & after.keys()):
                if name.startswith(OF_TIME):
                    continue
                if before[name] == after[name]:
                    equal += 1
                else:
                    values = f"{before[name]!r} and {after[name]!r}"
                    different.append(f"{training}, step {step}, {name}: {values}")
    different += [f"{training}: in one run only" for training in first.keys() ^ second.keys()]
    return equal, different, alone


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", help="commit, or run folder")
    parser.add_argument("second", nargs="?", default="HEAD", help="commit, or run folder")
    parser.add_argument("--config", default="quickstart", help="name of a ready configuration")
    parser.add_argument("--out", type=Path, default=Path("build/same_trials"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes")
    arguments = parser.parse_args()
    runs = []
    for name in (arguments.first, arguments.second):
        if Path(name, "journal.jsonl").is_file():
            runs.append(Path(name))
        else:
            commit = subprocess.check_output(["git", "rev-parse", "--short=8", name], text=True)
            runs.append(search(commit.strip(), arguments.config, arguments.out, arguments.changes))
    equal, different, alone = compared(*map(trainings, runs))
    print(*different, sep="\n")
    if alone:
        print(f"In one of them only: {', '.join(sorted(alone))}")
    print(f"{equal} metrics are equal, {len(different)} differ")
    sys.exit(bool(different) or not equal)


if __name__ == "__main__":
    main()
