"""Which failures are a machine's. Errors are as Ray raised them when processes were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train import Result
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from trainers.errors import ConfigError, StorageFailed, TrainingDiverged
from tuning.execution import retries as restarts
from tuning.execution.retries import MachinesLost, fit, machine_failure

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
MISSED = RuntimeError(
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:60084: "
    "Connection reset by peer"
)
NCCL = dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited")
DIVERGED = TrainingDiverged("the training loss is not a finite number at step 10")


def of_workers(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("page", dict(enumerate(failures)))


def in_task(cause: Exception) -> RayTaskError:
    """As a driver raises what its task raised."""
    return RayTaskError("f", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        of_workers(DEAD),
        of_workers(MISSED, DEAD),
        of_workers(MISSED),
        of_workers(NCCL, NCCL),
        of_workers(DIVERGED, DEAD),  # it is tried once more, and then diverges alone
        of_workers(WorkerHealthCheckFailedError("page", OutOfMemoryError("killed"))),
        ControllerError(ActorDiedError()),
        ControllerError(in_task(dist.DistNetworkError("timed out"))),
        ActorDiedError(),
    ],
)
def test_a_lost_process_is_a_machines_failure_with_whatever_its_peers_say_of_it(
    error: Exception,
) -> None:
    assert machine_failure(error) is not None
    assert machine_failure(cloudpickle.loads(cloudpickle.dumps(error))) is not None


@pytest.mark.parametrize(
    "error",
    [
        of_workers(DIVERGED),
        of_workers(DIVERGED, MISSED),
        of_workers(ConfigError("trial.steps"), ConfigError("trial.steps")),
        of_workers(StorageFailed("no space left")),
        of_workers(OSError("images are gone")),
        of_workers(ConnectionResetError("of a bucket: connection reset by peer")),
        of_workers(RuntimeError("shapes do not match")),
        of_workers(WorkerHealthCheckFailedError("page", TypeError("cannot pickle"))),
        ControllerError(ValueError("of a callback")),
        ControllerError(in_task(KeyError("rank"))),
        ActorDiedError.from_task_error(RayTaskError("f", "traceback", OSError("a torn list"))),
        ValueError("of our own"),
    ],
)
def test_what_training_itself_raises_is_not_tried_again(error: Exception) -> None:
    assert machine_failure(error) is None


def test_what_is_said_of_a_machine_is_what_happened_to_it_and_not_what_its_peers_saw() -> None:
    assert isinstance(machine_failure(of_workers(MISSED, DEAD)), RayActorError)
    assert machine_failure(of_workers(MISSED)) is MISSED
    hangs = WorkerHealthCheckTimeoutError("hanging")
    assert machine_failure(of_workers(hangs, MISSED)) is hangs


class Trainer:
    """Raises one error after the other, then ends."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.made: list[dict[str, Any]] = []

    def __call__(self, config: Any, **arguments: Any) -> Trainer:
        self.made.append(arguments)
        return self

    def fit(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "result"


def run(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    storage: Path,
    draining: dict[str, int] | None = None,
) -> Result:
    monkeypatch.setattr(restarts, "torch_trainer", trainer)
    monkeypatch.setattr(restarts, "draining_nodes", lambda: draining or {})
    resources = {"workers": 2, "max_failures": 2}
    return fit("{}", name="train-7", storage_path=str(storage), resources=resources)


def test_a_trainer_is_made_anew_under_its_name_as_often_as_it_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = Trainer(of_workers(DEAD), of_workers(MISSED))
    made = {"name": "train-7", "storage_path": str(tmp_path), "workers": 2}
    assert run(trainer, monkeypatch, tmp_path) == "result"
    assert trainer.made == [made] * 3
    with pytest.raises(MachinesLost) as caught:
        run(Trainer(*[of_workers(DEAD)] * 3), monkeypatch, tmp_path)
    told = str(cloudpickle.loads(cloudpickle.dumps(caught.value)))
    assert "lost 3 time(s), and search.resources.max_failures = 2: ActorDiedError: " in told
    assert "\n" not in told


def test_a_training_that_fails_by_itself_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = Trainer(of_workers(DIVERGED))
    with pytest.raises(WorkerGroupError):
        run(trainer, monkeypatch, tmp_path)
    assert len(trainer.made) == 1


def test_a_node_that_had_announced_its_end_counts_for_nothing_but_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = [of_workers(DEAD)] * 3
    assert run(Trainer(*lost), monkeypatch, tmp_path, {"a": 1}) == "result"
    with pytest.raises(MachinesLost, match="lost 3 time"):
        run(Trainer(*lost, of_workers(DEAD)), monkeypatch, tmp_path, {"a": 1})


def test_each_attempt_begins_with_storage_that_can_be_written_and_says_what_fails_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "train-7").write_text("a file where the folder of the trial would be")
    trainer = Trainer()
    with pytest.raises(StorageFailed, match="train-7"):
        run(trainer, monkeypatch, tmp_path)
    assert trainer.made == []
