"""Does a search wait for its views? `python -m tests.benchmarks.views_away`

Searches of instant trials without Ray, each in a process of its own, with the follower in its
thread: the span of the journal, from the first proposal to the last report, while a storage of the
dashboard takes 0.5 s for each write, the page 5 s, or MLflow's server hangs for 10 s, as ratios to
a search with quick views. The end of the search, which waits for its views, is not part of the
span.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

from optuna.storages import InMemoryStorage

from tests.images import write_first_images
from tests.tuning.agreement import journal_events
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, run_instantly
from tuning.views.mlflow.writer import MlflowView
from tuning.views.results import ResultsView


@contextmanager
def slower(owner, method, seconds, error=None):
    """Within the block, a method takes so long, and raises an error if one is given."""
    real = getattr(owner, method)

    def call(*arguments, **options):
        time.sleep(seconds)
        if error is not None:
            raise error
        return real(*arguments, **options)

    with patch.object(owner, method, call):
        yield


class Storage(InMemoryStorage):
    """That of the dashboard: the studies of the sampler have other ones."""

    def create_new_trial(self, *arguments, **options):
        return super().create_new_trial(*arguments, **options)


AWAY = {
    "quick views": (),
    "dashboard, 0.5 s a write": ((Storage, "create_new_trial", 0.5),),
    "page, 5 s": ((ResultsView, "write", 5.0),),
    "MLflow hangs": ((MlflowView, "write", 10.0, ConnectionError("timed out")),),
}
AWAY["all three"] = tuple(one for views in AWAY.values() for one in views)


def span(trials, images, runs, views):
    """Seconds from the first event of a trial to the last one."""
    file = instant_file(images, runs, search__budget__trials=trials)
    with ExitStack() as stack:
        stack.enter_context(without_ray(follows=True))
        stack.enter_context(patch("tuning.runs.follower.PATIENCE_S", 0.1))
        for view in views:
            stack.enter_context(slower(*view))
        found = run_instantly(file, storage=Storage())
    times = [event["time"] for event in journal_events(found.folder) if "trial" in event]
    return times[-1] - times[0]


def in_new_process(*arguments):
    command = [sys.executable, "-m", __spec__.name, "--one", *map(str, arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(found.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, images, runs = arguments.one
        return print(span(arguments.trials, Path(images), Path(runs), AWAY[name]))
    spans = {name: [] for name in AWAY}
    with tempfile.TemporaryDirectory(prefix="views-away-", ignore_cleanup_errors=True) as folder:
        images = write_first_images(Path(folder) / "images", ("bus", "cat"), train=1, val=1, test=1)
        for round_ in range(arguments.rounds):
            for number, name in enumerate(AWAY):
                runs = Path(folder) / f"{round_}-{number}"
                one = (name, images, runs, "--trials", arguments.trials)
                spans[name].append(in_new_process(*one))
    for name, found in spans.items():
        ratios = sorted(one / quick for one, quick in zip(found, spans["quick views"], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name:<26} {median(found):5.1f} s  ratio {median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
