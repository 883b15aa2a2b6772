"""A search that loses its driver and its nodes. Slow: real processes on several nodes of Ray."""

import dataclasses

import pytest

from tests.tuning.execution.nodes import add_node, cluster, driver, records
from tests.tuning.execution.real_searches import EQUAL_TRIALS, real_file, untimed
from tests.waiting import wait_until
from trainers.checkpoints.format import load_checkpoint, load_weights, save_checkpoint
from tuning.checkpoints import kept_checkpoint
from tuning.log.paths import JOURNAL_FILE
from tuning.run import load_run

EVERY, STEPS = 240, 720
"""Far apart, as a node is to be lost between two checkpoints, however fast the machine is."""
HOUR_S = 3600.0


@pytest.fixture(scope="module")
def three_nodes():
    """A trial of two workers fills the head, another one the other two nodes."""
    with cluster(head_cpus=2, nodes=2) as found:
        yield found


def num_reports(run_folder):
    return [len(record.curve) for record in records(run_folder).values()]


def checkpoints(run_folder):
    train = load_run(run_folder).checkpoints
    kept = {trial_id: kept_checkpoint(train, trial_id) for trial_id in records(run_folder)}
    return {name: found.local_path() for name, found in kept.items() if found is not None}


def set_clocks(run_folder, hours):
    """Let training until the checkpoints have taken hours; who continues from one reports that."""
    for folder in checkpoints(run_folder).values():
        weights, training, header = load_checkpoint(folder, load_weights(folder)[1])
        progress = dataclasses.replace(header.progress, seconds=hours * HOUR_S)
        save_checkpoint(folder, weights, training, dataclasses.replace(header, progress=progress))


@pytest.mark.cluster
def test_a_search_survives_its_driver_and_its_nodes(three_nodes, images_root, tmp_path):
    """Two equal trials: both lose their driver, then one loses a node.

    Each loss costs the steps since the newest checkpoint, and costs the other trial nothing.
    """
    settings = {
        **EQUAL_TRIALS,
        "search__budget": {"trials": 2},
        "search__resources": {"workers": 2, "max_failures": 1},
        "trial__steps": STEPS,
        "trial__eval__every": EVERY,
    }
    real_file(images_root, tmp_path, **settings)
    folder = tmp_path / "runs" / "small"
    journal = folder / JOURNAL_FILE
    with driver(three_nodes.address, "search", tmp_path / "small.yaml") as process:
        wait_until(lambda: num_reports(folder) == [1, 1], process=process)
        process.kill()
    set_clocks(folder, hours=10)

    with driver(three_nodes.address, "resume", folder) as process:
        # Both have repeated their report, and are between two checkpoints.
        wait_until(lambda: journal.read_text().count('"event": "report"') == 4, process=process)
        set_clocks(folder, hours=20)
        three_nodes.remove_node(three_nodes.list_all_nodes()[-1], allow_graceful=False)
        add_node(three_nodes)
        assert process.wait() == 0

    found = records(folder)
    hours = {name: [r["cost/seconds"] // HOUR_S for r in t.curve] for name, t in found.items()}
    assert sorted(hours.values()) == [[0, 10, 10], [0, 20, 20]]
    one, other = found.values()
    assert (one.outcome, other.outcome) == ("finished", "finished")
    assert one.step == STEPS
    assert list(map(untimed, one.curve)) == list(map(untimed, other.curve))
