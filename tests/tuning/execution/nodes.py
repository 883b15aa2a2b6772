"""Several Ray nodes on this machine, and searches that run on them as separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ray.cluster_utils import Cluster

from tests.tuning.execution.real_searches import PLAIN, configuration
from trainers.overrides import nest
from tuning.execution.ray_session import free_port, retry_slow_start
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import load_run

PATIENCE_S = 1200
"""Time for a condition; long, as the machine may be busy."""


@contextmanager
def cluster(head_cpus: int, nodes: int) -> Iterator[Cluster]:
    """A head with these CPUs, without a dashboard, and nodes of one CPU."""
    found = retry_slow_start(
        lambda: Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": head_cpus,
                "include_dashboard": False,
                "dashboard_port": free_port(),
            },
            shutdown_at_exit=True,
        )
    )
    try:
        for _ in range(nodes):
            add_node(found)
        yield found
    finally:
        found.shutdown()


def add_node(to: Cluster) -> Any:
    """A node of one CPU."""
    return retry_slow_start(lambda: to.add_node(num_cpus=1))


def drain(address: str, node_id: str, seconds: int) -> None:
    """Announce the end of a node, as an autoscaler does for a spot node."""
    subprocess.run(
        [
            Path(sys.executable).parent / "ray", "drain-node", "--address", address,
            "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "a spot node", "--deadline-remaining-seconds", str(seconds),
        ],
        check=True,
    )  # fmt: skip


def write(folder: Path, root: Path, name: str, **changes: Any) -> Path:
    """A search of equal trials with two workers; `changes` are dotted keys with `__` for `.`."""
    base = {
        **PLAIN,
        "search.name": name,
        "search.space": {
            "name": None,
            "parameters": {"optim.lr": {"type": "categorical", "choices": [3e-4]}},
        },
        "search.resources": {"workers": 2},
        "trial.steps": 60,
        "trial.eval.every": 20,
    }
    laid_over = {key.replace("__", "."): value for key, value in changes.items()}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(nest(base | laid_over, configuration(root, folder))))
    return path


@contextmanager
def driver(address: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Within the block, `python -m tuning` with these arguments on a cluster."""
    environment = {**os.environ, "RAY_ADDRESS": address}
    with (Path(str(arguments[-1])).parent / "driver.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuning", *map(str, arguments)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    """The first true value of the condition; fails if the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert process is None or process.poll() is None, "the driver has ended"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def processes(root: int) -> dict[int, str]:
    """A process and all that it has started, directly or not, with their names."""
    running = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().partition(" (")[2].rsplit(") ", 1)
        except OSError:  # it has ended
            continue
        running[int(stat.parent.name)] = name, int(fields.split()[1])
    found = [root]
    for process in found:
        found += [child for child, (_, parent) in running.items() if parent == process]
    return {process: running[process][0] for process in found}


def records(folder: Path) -> dict[str, TrialRecord]:
    """The trials of a run; none while it is being created."""
    try:
        return {record.trial_id: record for record in load_run(folder).history.records}
    except Exception:  # the driver is writing it
        return {}


def figures(record: TrialRecord) -> list[dict[str, float]]:
    """A curve without the values that depend on time."""
    clocks = ("cost/", "train/images_per_s")
    return [{k: v for k, v in r.items() if not k.startswith(clocks)} for r in record.curve]
