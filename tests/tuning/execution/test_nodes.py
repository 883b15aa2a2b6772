"""Nodes that are killed, that give notice, and that an autoscaler adds. Slow: each test runs a
search of real processes on several real nodes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.tuning.execution.nodes import (
    add_node,
    cluster,
    driver,
    figures,
    records,
    wait_for,
    write,
)
from trainers.checkpoints.format import load_checkpoint, load_weights, save_checkpoint, saved_step
from tuning.checkpoints.files import kept_checkpoint
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import load_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

EVERY, STEPS = 240, 480
"""Far apart, for a node is to be lost between two checkpoints, however fast the machine is."""
LONG_AGO_S = 10_000.0
"""Put into the clock of a checkpoint; the figures of whoever goes on from it show it."""


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """A trial of two workers fills the head, a second one the other two nodes."""
    with cluster(head_cpus=2, nodes=2) as found:
        yield found


def two_trials(folder: Path, root: Path, name: str, **changes: object) -> Path:
    """The same trial twice, each with two workers."""
    settings = {"search__budget": {"trials": 2}, "trial__steps": STEPS, "trial__eval__every": EVERY}
    return write(folder, root, name, **(settings | changes))


def both_have_reported(run_folder: Path) -> bool:
    """Whether both trials have a checkpoint, and neither has a second one."""
    return [len(record.curve) for record in records(run_folder).values()] == [1, 1]


@contextmanager
def lost(nodes: Cluster) -> Iterator[None]:
    """Kill one of the nodes of one CPU; another one comes in its place when the block is left.

    Within it, the node's trial can neither go on nor start again.
    """
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    yield
    add_node(nodes)


def checkpoints(run_folder: Path) -> list[Path]:
    """The last one of each trial that has one."""
    train = load_run(run_folder).checkpoints
    kept = [kept_checkpoint(train, trial_id) for trial_id in records(run_folder)]
    return [checkpoint.local_path() for checkpoint in kept if checkpoint is not None]


def put_back_the_clock(checkpoint: Path) -> None:
    """As if training until there had taken hours."""
    class_names = load_weights(checkpoint)[1]
    found = load_checkpoint(checkpoint, class_names)
    progress = dataclasses.replace(found.progress, seconds=LONG_AGO_S)
    save_checkpoint(checkpoint, dataclasses.replace(found, progress=progress), class_names)


def went_on(record: TrialRecord) -> bool:
    """Whether its last attempt began at a checkpoint of which the clock was put back."""
    return record.metrics["cost/seconds"] > LONG_AGO_S


def assert_undisturbed(run_folder: Path) -> None:
    """Both trials finished, and say the same."""
    one, two = records(run_folder).values()
    assert (one.outcome, two.outcome) == ("finished", "finished")
    assert one.step == STEPS
    assert figures(one) == figures(two)


def test_a_killed_node_costs_its_trial_the_steps_since_its_checkpoint_and_the_other_one_nothing(
    three_nodes: Cluster, images_root: Path, tmp_path: Path
) -> None:
    config, folder = two_trials(tmp_path, images_root, "killed"), tmp_path / "killed"
    with driver(three_nodes.address, "search", config) as process:
        wait_for(lambda: both_have_reported(folder), process)
        with lost(three_nodes):
            for checkpoint in checkpoints(folder):
                put_back_the_clock(checkpoint)
        assert process.wait() == 0
    assert_undisturbed(folder)
    assert sorted(went_on(record) for record in records(folder).values()) == [False, True]
    assert f"goes on from step {EVERY}/{STEPS}" in (tmp_path / "driver.log").read_text()


def test_a_killed_driver_is_followed_by_one_that_completes_its_search(
    three_nodes: Cluster, images_root: Path, tmp_path: Path
) -> None:
    config, folder = two_trials(tmp_path, images_root, "driver"), tmp_path / "driver"
    with driver(three_nodes.address, "search", config) as process:
        wait_for(lambda: both_have_reported(folder), process)
        process.kill()
    for checkpoint in checkpoints(folder):
        put_back_the_clock(checkpoint)
    with driver(three_nodes.address, "resume", folder) as process:
        assert process.wait() == 0
    assert_undisturbed(folder)
    assert all(went_on(record) for record in records(folder).values())


def test_a_node_that_announces_its_end_has_its_trial_saved_between_two_evaluations(
    three_nodes: Cluster, images_root: Path, tmp_path: Path
) -> None:
    config = two_trials(tmp_path, images_root, "notice", search__resources__max_failures=0)
    folder = tmp_path / "notice"
    with driver(three_nodes.address, "search", config) as process:
        wait_for(lambda: both_have_reported(folder), process)
        drain(three_nodes.address, three_nodes.list_all_nodes()[-1].node_id)
        (saved,) = wait_for(
            lambda: [found for found in checkpoints(folder) if (saved_step(found) or 0) % EVERY],
            process,
        )
        with lost(three_nodes):
            put_back_the_clock(saved)
        assert process.wait() == 0
    assert_undisturbed(folder)
    assert sorted(went_on(record) for record in records(folder).values()) == [False, True]


def drain(address: str, node_id: str) -> None:
    """Give notice, as an autoscaler does that hears of a spot node's end."""
    subprocess.run(
        [
            Path(sys.executable).parent / "ray", "drain-node", "--address", address,
            "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "a spot node", "--deadline-remaining-seconds", "60",
        ],
        check=True,
    )  # fmt: skip
