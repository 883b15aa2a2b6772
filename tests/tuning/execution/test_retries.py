"""Which failures are those of a machine. Errors are as Ray raised them for killed processes."""

import shutil

import pytest
import ray
import torch
import torch.distributed as dist
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from tests.trainers.curves import short
from trainers.errors import ConfigError, MicroBatchTooLarge, StorageFailed, TrainingDiverged
from trainers.ray_trainer import train_loop
from tuning.config.schema import ResourcesConfig
from tuning.execution import retries
from tuning.execution.ray_session import ray_session
from tuning.execution.retries import FaultyNodes, MachinesLost, fit, machine_failure

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
MISSED = RuntimeError(
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:60084: "
    "Connection reset by peer"
)
NCCL = dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited")
DIVERGED = TrainingDiverged("the training loss is not a finite number at step 10")


def accelerator(message, code):
    """An error of CUDA as PyTorch raises it."""
    error = torch.AcceleratorError(message)
    error.error_code = code
    return error


def of_workers(*failures):
    return WorkerGroupError("page", dict(enumerate(failures)))


def in_task(cause):
    """As a driver raises what its task raised."""
    return RayTaskError("f", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        of_workers(DEAD),
        of_workers(MISSED, DEAD),
        of_workers(MISSED),
        of_workers(NCCL, NCCL),
        of_workers(RuntimeError("Gloo connectFullMesh failed with [../gloo/tcp/pair.cc:144] no")),
        of_workers(DIVERGED, DEAD),  # it is tried once more, and then diverges alone
        of_workers(WorkerHealthCheckFailedError("page", OutOfMemoryError("killed"))),
        ControllerError(ActorDiedError()),
        ControllerError(in_task(dist.DistNetworkError("timed out"))),
        ActorDiedError(),
    ],
)
def test_a_failure_of_a_machine_is_retried(error):
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
        of_workers(RuntimeError("the number of sockets must be positive")),
        of_workers(RuntimeError("NCCL is not available")),
        of_workers(dist.DistBackendError("NCCL error: ncclInvalidUsage: This usually reflects")),
    ],
)
def test_what_the_training_raises_is_not_retried(error):
    assert machine_failure(error) is None


def test_a_failed_gpu_is_retried():
    for message, code in (("uncorrectable ECC error", 214), ("unspecified launch failure", 719)):
        error = accelerator(f"CUDA error: {message}", code)
        assert machine_failure(of_workers(error, DIVERGED)) is error
    for message, code in (("device-side assert triggered", 710), ("out of memory", 2)):
        assert machine_failure(of_workers(accelerator(message, code))) is None


def test_the_reason_is_the_lost_worker_not_its_peers():
    assert isinstance(machine_failure(of_workers(MISSED, DEAD)), RayActorError)
    assert machine_failure(of_workers(MISSED)) is MISSED
    hangs = WorkerHealthCheckTimeoutError("hanging")
    assert machine_failure(of_workers(hangs, MISSED)) is hangs


@pytest.mark.ray
def test_a_node_with_failing_gpus_is_avoided_if_another_one_holds_a_trial(ray_head):
    with ray_session(ray_head.address):
        (here,) = (node["NodeID"] for node in ray.nodes())
        nodes = FaultyNodes(ResourcesConfig())
        for node in (here, "another"):
            error = accelerator("CUDA error: uncorrectable ECC error", 214)
            error.node = node
            assert nodes.failed("trial-000", of_workers(error, error, DIVERGED)) == ""
            nodes.finished()  # so the next failure is the first one again
            assert nodes.failed("trial-000", of_workers(error)) == ""
            assert nodes.placement() == {}
            said = nodes.failed("trial-000", of_workers(error))
            if node == here:
                assert said.endswith(f"({here[:8]}): no other node can hold a trial")
                assert nodes.placement() == {}
                nodes = FaultyNodes(ResourcesConfig())
        assert said.endswith("another): trials avoid it")
        nodes.finished()
        assert nodes.placement() == {"avoid": ["another"], "workers": 1}


@pytest.mark.ray
def test_a_trial_that_fails_on_two_nodes_is_at_fault_itself(ray_head):
    def fail(trial, node):
        error = accelerator("CUDA error: an illegal memory access was encountered", 700)
        error.node = node
        return nodes.failed(trial, of_workers(error))

    with ray_session(ray_head.address):
        nodes = FaultyNodes(ResourcesConfig())
        fail("trial-000", "a")
        assert fail("trial-000", "a").endswith("trials avoid it")
        assert nodes.placement() == {"avoid": ["a"], "workers": 1}
        assert fail("trial-000", "b") == fail("trial-000", "b") == ""
        assert nodes.placement() == {}
        fail("trial-001", "b")
        assert fail("trial-002", "b").endswith("trials avoid it")
        assert nodes.placement() == {"avoid": ["b"], "workers": 1}


class Trainer:
    """Raises one error after the other, then ends."""

    return_value = "last report"

    def __init__(self, *errors):
        self.errors = list(errors)
        self.made = []

    def __call__(self, loop, values, **arguments):
        self.made.append(values | arguments)
        return self

    def fit(self):
        if self.errors:
            raise self.errors.pop(0)
        return self


def run(trainer, monkeypatch, storage, draining=None):
    monkeypatch.setattr(retries, "torch_trainer", trainer)
    monkeypatch.setattr(retries, "without_helpers", lambda made: made)
    monkeypatch.setattr(retries, "draining_nodes", lambda: draining or {})
    resources = ResourcesConfig(workers=2, max_failures=2)
    return fit("{}", name="train-7", storage_path=str(storage), resources=resources)


def test_each_attempt_has_a_new_name_and_the_same_checkpoints(monkeypatch, tmp_path):
    trainer = Trainer(of_workers(DEAD), of_workers(MISSED))
    assert run(trainer, monkeypatch, tmp_path) == "last report"
    assert len({made["name"] for made in trainer.made}) == 3
    for made in trainer.made:
        assert made["name"].startswith("train-7-")
        assert made["folder"] == f"{tmp_path}/train-7"
        assert not made["scratch"].exists()
        assert (made["trial"], made["workers"]) == ("{}", 2)


def test_what_a_killed_driver_has_left_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "lipsum-tune-train-left"
    left.mkdir()
    run(Trainer(), monkeypatch, tmp_path / "storage")
    assert not left.exists()


def test_too_many_failures_end_the_training(monkeypatch, tmp_path):
    with pytest.raises(MachinesLost) as caught:
        run(Trainer(*[of_workers(DEAD)] * 3), monkeypatch, tmp_path)
    message = str(cloudpickle.loads(cloudpickle.dumps(caught.value)))
    assert "lost 3 time(s), and search.resources.max_failures = 2: ActorDiedError: " in message
    assert "\n" not in message
    trainer = Trainer(of_workers(DIVERGED))
    with pytest.raises(WorkerGroupError):
        run(trainer, monkeypatch, tmp_path)
    assert len(trainer.made) == 1


def test_want_of_memory_is_repeated_five_times_beside_other_failures(monkeypatch, tmp_path):
    short = of_workers(MISSED, cloudpickle.loads(cloudpickle.dumps(MicroBatchTooLarge(16))))
    assert run(Trainer(*[short] * 5, *[of_workers(DEAD)] * 2), monkeypatch, tmp_path)
    trainer = Trainer(*[short] * 6)
    with pytest.raises(WorkerGroupError):
        run(trainer, monkeypatch, tmp_path)
    assert len(trainer.made) == 6


@pytest.mark.ray
def test_workers_short_of_memory_go_on_with_half(trial, local_ray, tmp_path):
    """Each has four images a step, and room for two at once from the third step on."""

    def loop(values):
        from tests.trainers.loop.short_memory import limit_images
        from trainers import fine_tune

        fine_tune.start = limit_images(2, "student", from_step=3)
        return train_loop(values)

    resources = ResourcesConfig(workers=2, max_failures=0)
    options = {"name": "short", "storage_path": tmp_path, "resources": resources}
    with ray_session():
        last = fit(short(trial, "ft", steps=6).model_dump_json(), loop=loop, **options)
        assert last["train/micro_batch_size"] == 2
        # A later call begins with what fitted.
        shutil.rmtree(next((tmp_path / "short").glob("checkpoint_*")))
        again = fit(short(trial, "ft", steps=1).model_dump_json(), **options)
    assert again["train/micro_batch_size"] == 2


def test_a_node_that_announced_its_end_does_not_count_once(monkeypatch, tmp_path):
    lost = [of_workers(DEAD)] * 3
    assert run(Trainer(*lost), monkeypatch, tmp_path, {"a": 1}) == "last report"
    with pytest.raises(MachinesLost, match="lost 3 time"):
        run(Trainer(*lost, of_workers(DEAD)), monkeypatch, tmp_path, {"a": 1})


def test_workers_remember_the_announcement_of_a_node_that_ray_has_forgotten(monkeypatch, tmp_path):
    told = RuntimeError(*MISSED.args)
    told.leaving = {"a"}
    told = cloudpickle.loads(cloudpickle.dumps(told))
    lost = [of_workers(MISSED)] * 2
    assert run(Trainer(of_workers(told), *lost), monkeypatch, tmp_path) == "last report"
    with pytest.raises(MachinesLost, match="lost 3 time"):
        run(Trainer(of_workers(told), of_workers(told), *lost), monkeypatch, tmp_path)


def test_no_attempt_starts_without_storage(monkeypatch, tmp_path):
    (tmp_path / "train-7").write_text("a file in the place of the trial's folder")
    trainer = Trainer()
    with pytest.raises(StorageFailed, match="train-7"):
        run(trainer, monkeypatch, tmp_path)
    assert trainer.made == []
