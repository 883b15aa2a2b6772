"""Searches whose trials take no time: everything but the training is real.

As a program, it runs or resumes such a search as a driver of its own:
`python -m tests.tuning.execution.instant CONFIG_OR_RUN_FOLDER`.
"""

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from ray import tune
from rich.console import Console

from tests.tuning.databases import with_database
from tests.tuning.execution.slot import EVERY, METRICS, STEPS, InstantSlot
from tests.tuning.run_folders import search_file
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.execution.cluster_resources import SLOT
from tuning.execution.runner import RayRunner
from tuning.log.folder import write_config
from tuning.log.history import read_history
from tuning.log.resume import check_changes
from tuning.run import load_run
from tuning.search import SearchOptions, continue_search, start_search


def instant_file(root, storage, **changes):
    """Three trials of three reports; dotted keys, `__` for dots. The storage has a database."""
    settings = {
        "trial__steps": STEPS,
        "trial__eval__every": EVERY,
        "search__name": "small",
        "search__storage": str(with_database(storage)),
        "search__references": [],
        "search__budget__trials": 3,
        "search__resources__max_concurrent": 1,
    }
    return search_file(root, **settings | changes)


def runner_of(trainable):
    """A runner of other trials."""
    return type("Runner", (RayRunner,), {"trainable": staticmethod(trainable)})


def instant_options(file, **options):
    """Options of a search with instant trials."""

    def trainable(checkpoints, resources, final_split, plugins):
        common = {"folder": Path(checkpoints), "runs": Path(file.search.storage)}
        common["final_split"] = final_split
        slot = type("InstantSlot", (InstantSlot,), common)
        return tune.with_resources(slot, SLOT)

    options = {"console": Console(quiet=True), **options}
    return SearchOptions(runner=runner_of(trainable), **options)


def zero_shot(*_, **__):
    return dict.fromkeys(METRICS[:3], 40.0)


def run_instantly(file, **options):
    with patch("tuning.session.zero_shot_metrics", zero_shot):
        return start_search(file, instant_options(file, **options))


def resume_instantly(folder, *overrides, **options):
    file = load_config(folder / "search.yaml", check=False)
    changed = load_config(folder / "search.yaml", overrides)
    check_changes(load_run(folder, whole=True), changed)
    return continue_search(folder, changed, instant_options(file, **options))


def write_instant(folder, file):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, file)
    return folder / "search.yaml"


def start(path, log):
    """This program as a process, with its messages in a file."""
    command = [sys.executable, "-m", "tests.tuning.execution.instant", str(path)]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)


def num_reports(folder):
    """Number of reports in a run folder; 0 while a driver creates it."""
    try:
        return sum(len(record.curve) for record in read_history(folder, live=True).records)
    except ConfigError:
        return 0


def main(path):
    from tuning.cli import run_command
    from tuning.cli.search import _show

    def run():
        console = Console(stderr=True)
        if path.is_dir():
            _show(resume_instantly(path, console=console))
        else:
            _show(run_instantly(load_config(path), console=console))

    run_command(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
