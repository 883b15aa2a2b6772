"""Temporary folders of workers. Tests of kept workers and of searches train on a real Ray."""

import errno
import os
import shutil
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import ray
import ray.train
import torch

from tests.trainers.curves import changed
from trainers import ray_trainer
from trainers.checkpoints.format import Header, Progress, save_checkpoint
from trainers.checkpoints.storage import prepare_folder, write_checkpoint
from trainers.data.store import open_store
from trainers.errors import ConfigError, StorageFailed
from trainers.ray_trainer import (
    _told_to_the_search,
    newest_on_this_node,
    task_device,
    train,
)


def save(folder):
    training, header = {"optimizer": {}}, Header(Progress(40), ("ant",))
    save_checkpoint(folder, {"head": torch.zeros(9)}, training, header)


def fetched(folder):
    """The newest checkpoint of a store that is not on this machine."""
    store = open_store(f"memory://{folder}/train")
    prepare_folder(store)
    write_checkpoint(store, save)
    return newest_on_this_node(store)


def test_a_checkpoint_of_a_killed_worker_is_removed_and_that_of_another_kept(tmp_path, monkeypatch):
    ranks = ("get_world_rank", "get_local_rank", "get_node_rank")
    context = SimpleNamespace(**dict.fromkeys(ranks, lambda: 0), get_experiment_name=lambda: "slot")
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray_trainer, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(ray_trainer, "barrier", lambda: None)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with fetched(tmp_path / "a") as running:
        assert running is not None
        shutil.copytree(running, f"{running}-killed")  # without the lock of a process
        with fetched(tmp_path / "b") as other:
            assert set(temporary.iterdir()) == {running, other}
            assert {file.name for file in other.iterdir()} == {f.name for f in running.iterdir()}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("reserved", "device", "limits"),
    [
        ({"CPU": 2.0}, "cpu", []),
        ({"CPU": 2.0, "GPU": 1.0}, "cuda:0", []),
        ({"GPU": 0.5}, "cuda:0", [(0.375, torch.device("cuda:0"))]),
    ],
)
def test_a_task_uses_what_it_has_reserved(reserved, device, limits, monkeypatch):
    found = []
    context = SimpleNamespace(get_assigned_resources=lambda: reserved)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *limit: found.append(limit)
    )
    card = SimpleNamespace(total_memory=8 * ray_trainer.CONTEXT_BYTES)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert task_device() == torch.device(device)
    assert found == limits


@pytest.mark.parametrize(("given", "expected"), [("auto", 8), (3, 3)])
def test_loaders_are_as_many_as_the_reserved_cpus(given, expected, trial, tmp_path, monkeypatch):
    """PyTorch has one thread here, as where OMP_NUM_THREADS is exported."""
    found = []
    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(ray_trainer, "newest_on_this_node", lambda folder: nullcontext())
    monkeypatch.setattr(
        "trainers.fine_tune.fine_tune", lambda config, **_: iter(found.append(config) or ())
    )
    config = changed(trial, data__workers=given)
    assert [*train(config, open_store(tmp_path))] == []
    assert found[0].data.loader_processes(on_gpu=True) == expected


def test_a_full_cache_is_no_fault_of_the_trial():
    def cached(number):
        with _told_to_the_search():
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise ConfigError(f"cannot be cached: {error}") from None

    with pytest.raises(StorageFailed, match=r"node .*: cannot be cached: .*No space left"):
        cached(errno.ENOSPC)
    with pytest.raises(ConfigError):
        cached(errno.EACCES)
