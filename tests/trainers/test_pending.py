"""What a run leaves for others, on disks and in buckets, and what is found of it after a kill."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pyarrow import fs

from trainers.checkpoint import WEIGHTS
from trainers.config import DataConfig
from trainers.data.storage import Store, open_store
from trainers.domain_sums import MEASURES
from trainers.errors import StorageFailed
from trainers.evaluation import metric_names
from trainers.pending import (
    REPORT,
    Pending,
    is_complete,
    leave_complete,
    leave_pending,
    left_pending,
    read_pending,
    remove_all_pending,
    remove_pending,
)

DATA = DataConfig(id_domain="real", ood_domains=("sketch", "clipart"))
METRICS = {
    "train/loss": math.inf,
    "id_val/temperature": 0.5,
    **{f"id_val/{name}": 0.1 + 0.2 * number for number, name in enumerate(MEASURES)},
}


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder of pending reports; a bucket is a file system that is not this machine's own."""
    if request.param == "disk":
        return open_store(tmp_path / "run" / "pending")
    (tmp_path / "bucket").mkdir()
    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    return Store(bucket, "run/pending", "s3://bucket/run/pending")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"weights")
    return folder


def test_what_was_left_is_found_in_the_order_of_steps_until_it_is_removed(
    store: Store, checkpoint: Path
) -> None:
    assert left_pending(store) == []
    left = [leave_pending(store, checkpoint, n, METRICS, DATA) for n in (300, 1000, 20, 300)]
    found = left_pending(store)
    assert sorted(found, key=lambda p: p.name) == sorted(left, key=lambda p: p.name)
    assert [pending.step for pending in found] == [20, 300, 300, 1000]
    for pending in found:
        assert read_pending(store, pending.name) == pending
        assert pending.metrics == METRICS
        assert store.read_bytes(f"{pending.name}/{WEIGHTS}") == b"weights"
        remove_pending(store, pending.name)
        remove_pending(store, pending.name)  # again, by who was killed before he could say so
    assert store.list() == []


def test_half_a_folder_which_a_kill_left_is_removed_and_no_report(
    store: Store, checkpoint: Path
) -> None:
    whole = leave_pending(store, checkpoint, 20, METRICS, DATA)
    torn = leave_pending(store, checkpoint, 40, METRICS, DATA)
    store.filesystem.delete_file(store.full(f"{torn.name}/{REPORT}"))
    assert left_pending(store) == [whole]
    assert [info.base_name for info in store.list()] == [whole.name]
    with pytest.raises(StorageFailed, match=f"{torn.name}: cannot be read"):
        read_pending(store, torn.name)


def test_a_report_that_lacks_nothing_is_left_without_weights_and_found_among_the_others(
    store: Store, checkpoint: Path
) -> None:
    before = leave_pending(store, checkpoint, 20, METRICS, DATA)
    whole = leave_complete(store, 40, METRICS)
    after = leave_pending(store, checkpoint, 60, METRICS, DATA)
    assert left_pending(store) == [before, whole, after]
    assert (whole.metrics, whole.ood_domains) == (METRICS, ())
    assert [info.base_name for info in store.list(whole.name)] == [REPORT]


def test_all_of_a_step_is_removed_but_what_is_named(store: Store, checkpoint: Path) -> None:
    remove_all_pending(store, 20, but=())
    named, torn, _ = (leave_pending(store, checkpoint, 20, METRICS, DATA) for _ in range(3))
    store.filesystem.delete_file(store.full(f"{torn.name}/{REPORT}"))
    other = leave_complete(store, 200, METRICS)
    remove_all_pending(store, 20, but={named.name})
    assert [info.base_name for info in store.list()] == [named.name, other.name]


def test_the_whole_report_has_the_names_and_means_of_one_that_was_never_in_parts() -> None:
    pending = Pending("step", 20, METRICS, "real", ("sketch", "clipart"))
    sketch, clipart = ({name: 10.0 * n + i for i, name in enumerate(MEASURES)} for n in (1, 2))
    whole = pending.completed({"clipart": clipart, "sketch": sketch})
    assert set(whole) == {"train/loss", *metric_names(DATA)}
    assert {name: whole[name] for name in METRICS} == METRICS
    assert whole["ood_val/sketch/nll"] == 12.0
    assert whole["ood_val/mean_nll"] == 17.0
    assert whole["val/mean_acc"] == (METRICS["id_val/acc"] + 15.0) / 2
    assert "ood_val/mean_temperature" not in whole
    assert is_complete(whole, DATA)
    assert not is_complete(METRICS, DATA)
    assert is_complete(METRICS, DataConfig(id_domain="real", ood_domains=()))
