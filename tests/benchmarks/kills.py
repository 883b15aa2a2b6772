"""Is anything lost or done twice when the driver is killed? `python -m tests.benchmarks.kills`

Runs a search on the built-in benchmark as a process of its own, kills its driver with SIGKILL at
random moments, resumes it each time, and at the end compares the journal, the Optuna study, the
MLflow runs and the tables one to one. Exits with status 1 and names what does not agree.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from tests.tuning.agreement import disagreements, journal_events
from tuning.config.validation import load_config

SHORT = (
    "trial.steps=40",
    "trial.eval.every=10",
    "search.scheduler={name: asha, grace_steps: 10, reduction_factor: 2}",
    "search.budget.trials=10",
)
"""The quickstart's search, with more and shorter trials, some of which are stopped early."""


def search_with_kills(config, storage, kills, seed=0):
    """Run a search to its end in spite of so many kills; returns its run folder.

    Each kill comes a random time of up to 5 s after a random number of up to 8 events of that
    driver, so that a slow machine is not killed while it starts, time after time.

    Args:
        config: of a search that keeps its runs in `storage` and is called as its file is.
        storage: the folder of runs.
        kills: of the driver.
        seed: of the moments.
    """
    moments = random.Random(seed)
    folder = storage / config.stem
    for number in range(kills + 1):
        before = len(journal_events(folder))
        command = ["resume", str(folder)] if before else ["search", str(config)]
        driver = subprocess.Popen(
            [sys.executable, "-m", "tuning", *command], stdout=subprocess.DEVNULL
        )
        if number == kills:
            if driver.wait() not in (0, 1):  # 1: a trial failed, which may be what was asked for
                raise RuntimeError(f"the last driver exited with status {driver.returncode}")
            break
        events = moments.randrange(9)
        while driver.poll() is None and len(journal_events(folder)) < before + events:
            time.sleep(0.05)
        time.sleep(moments.uniform(0.0, 5.0))
        driver.kill()
        driver.wait()
        print(f"kill {number + 1}: {_progress(folder)}", flush=True)
    return folder


def _progress(folder):
    events = Counter(event["event"] for event in journal_events(folder))
    return ", ".join(f"{count} {name}" for name, count in events.items()) or "nothing yet"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    storage = Path(tempfile.mkdtemp(prefix="kills-"))
    config = storage / "killed.yaml"
    changes = [*SHORT, "search.name=killed", f"search.storage={storage}"]
    file = load_config("quickstart", changes)
    config.write_text(yaml.safe_dump(file.model_dump(mode="json")))
    began = time.monotonic()
    folder = search_with_kills(config, storage, arguments.kills, arguments.seed)
    found = disagreements(folder)
    print(f"{arguments.kills} kills, {_progress(folder)}, {time.monotonic() - began:.0f} s")
    print("\n".join(found) or "journal, Optuna, MLflow and tables agree one to one")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
