"""Several Ray nodes on this machine, and drivers of searches as processes of their own."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.ports import free_ports
from tests.ray_head import retry_slow_start
from tuning.run import load_run


@contextmanager
def cluster(head_cpus, nodes):
    """A head with these CPUs, without a dashboard, and nodes of one CPU."""
    found = retry_slow_start(
        lambda: Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": head_cpus,
                "include_dashboard": False,
                "dashboard_port": free_ports(1),
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


def add_node(to):
    return retry_slow_start(lambda: to.add_node(num_cpus=1))


@contextmanager
def driver(address, *arguments):
    """Within the block, `python -m tuning` with these arguments on a cluster.

    What it has printed is shown if the test fails.
    """
    environment = {**os.environ, "RAY_ADDRESS": address}
    printed = Path(str(arguments[-1])).parent / "driver.log"
    with printed.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuning", *map(str, arguments)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        print(printed.read_text(errors="replace"))


def processes(root):
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


def records(folder):
    """The trials of a run; none while it is being created."""
    try:
        return {record.trial_id: record for record in load_run(folder).history.records}
    except Exception:  # the driver is writing it
        return {}
