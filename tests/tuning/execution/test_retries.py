"""Which failures are those of a machine. Errors are as Ray raised them for killed processes."""

import pytest
import ray
import torch
import torch.distributed as dist
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import (
    RayTrainError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from trainers.errors import ConfigError, MicroBatchTooLarge, StorageFailed, TrainingDiverged
from tuning.config.schema import ResourcesConfig
from tuning.execution import retries
from tuning.execution.retries import (
    Attempts,
    FaultyNodes,
    MachinesLost,
    TrainingHangs,
    machine_failure,
)

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
        of_workers(RuntimeError("DataLoader worker (pid(s) 47, 48) exited unexpectedly")),
        of_workers(RuntimeError("DataLoader worker (pid 47) is killed by signal: Killed. ")),
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


def renamed(error):
    """The same error of Ray under other names, as another Ray may have it."""
    if type(error).__module__.startswith("ray.train"):
        kind = type(f"Another{type(error).__name__}", (type(error),), {})
        kind.__module__ = type(error).__module__
        error.__class__ = kind
    for name, value in list(vars(error).items()):
        for inner in value.values() if isinstance(value, dict) else [value]:
            if isinstance(inner, BaseException):
                renamed(inner)
                vars(error).pop(name, None)
                vars(error)[f"another_{name}"] = value
    return error


@pytest.mark.parametrize("others", [[], [MISSED], [DIVERGED]])
def test_a_lost_worker_is_found_under_other_names_of_ray(others):
    for lost in (
        WorkerHealthCheckFailedError("page", ActorDiedError()),
        WorkerHealthCheckTimeoutError("hanging"),
        in_task(WorkerHealthCheckFailedError("page", OutOfMemoryError("killed"))),
    ):
        error = renamed(ControllerError(of_workers(*others, lost)))
        assert not hasattr(error, "controller_failure")
        assert isinstance(machine_failure(error), RayActorError | OutOfMemoryError | RayTrainError)
    assert machine_failure(renamed(of_workers(DIVERGED, DIVERGED))) is None


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


@pytest.fixture
def fail(monkeypatch):
    """Let a GPU of a node fail in a trial. The cluster is a node of one CPU."""
    here = {"NodeID": "here", "NodeManagerAddress": "10.0.0.5", "Alive": True}
    monkeypatch.setattr(ray, "nodes", lambda: [here | {"Resources": {"CPU": 1.0}}])

    def fail(nodes, trial, node):
        error = accelerator("CUDA error: an illegal memory access was encountered", 700)
        error.node = node
        return nodes.failed(trial, of_workers(error, error, DIVERGED))

    return fail


@pytest.mark.parametrize(
    ("node", "said", "placement"),
    [
        ("here", "10.0.0.5 (here): no other node can hold a trial", {}),
        ("another", "unknown (another): trials avoid it", {"avoid": ["another"]}),
    ],
)
def test_a_node_with_failing_gpus_is_avoided_if_another_one_holds_a_trial(
    node, said, placement, fail
):
    nodes = FaultyNodes(ResourcesConfig())
    assert fail(nodes, "trial-000", node) == ""
    nodes.finished()  # so the next failure is the first one again
    assert fail(nodes, "trial-000", node) == ""
    assert nodes.placement() == {}
    assert fail(nodes, "trial-000", node).endswith(said)
    nodes.finished()
    assert nodes.placement() == placement


def test_a_trial_that_fails_on_two_nodes_is_at_fault_itself(fail):
    nodes = FaultyNodes(ResourcesConfig())
    fail(nodes, "trial-000", "a")
    assert fail(nodes, "trial-000", "a").endswith("trials avoid it")
    assert fail(nodes, "trial-000", "b") == fail(nodes, "trial-000", "b") == ""
    assert nodes.placement() == {}
    fail(nodes, "trial-001", "b")
    assert fail(nodes, "trial-002", "b").endswith("trials avoid it")
    assert nodes.placement() == {"avoid": ["b"]}


@pytest.fixture
def attempts(monkeypatch):
    """Of a training that survives two failures; Ray knows the end of these nodes."""
    known = {}
    monkeypatch.setattr(retries, "draining_nodes", lambda: known)
    made = Attempts("trial-000", FaultyNodes(ResourcesConfig(max_failures=2)))
    made.known = known
    return made


def test_too_many_failures_end_the_training(attempts):
    for error in (of_workers(DEAD), of_workers(MISSED)):
        assert "trial-000 is repeated from its newest checkpoint: " in attempts.failed(error)
    with pytest.raises(MachinesLost) as caught:
        attempts.failed(of_workers(DEAD))
    message = str(cloudpickle.loads(cloudpickle.dumps(caught.value)))
    assert "lost 3 time(s), and search.resources.max_failures = 2: ActorDiedError: " in message
    assert "\n" not in message


def test_what_the_training_raised_is_raised(attempts):
    with pytest.raises(WorkerGroupError):
        attempts.failed(of_workers(DIVERGED))


def test_want_of_memory_is_repeated_five_times_beside_other_failures(attempts):
    short = of_workers(MISSED, cloudpickle.loads(cloudpickle.dumps(MicroBatchTooLarge(16))))
    for _ in range(5):
        assert "repeated from its newest checkpoint" in attempts.failed(short)
    for _ in range(2):
        attempts.failed(of_workers(DEAD))
    with pytest.raises(WorkerGroupError):
        attempts.failed(short)


def test_a_node_that_announced_its_end_does_not_count_once(attempts):
    attempts.known["a"] = 1
    for _ in range(3):
        attempts.failed(of_workers(DEAD))
    with pytest.raises(MachinesLost, match="lost 3 time"):
        attempts.failed(of_workers(DEAD))


def test_a_second_hang_ends_the_training_and_the_first_counts_as_no_failure(attempts):
    said = attempts.failed(of_workers(DEAD), lambda: "in loss")
    assert said.endswith("no step or batch in 1800 s\nin loss")
    for _ in range(2):
        attempts.failed(of_workers(DEAD))
    with pytest.raises(TrainingHangs, match="1800 s, for the second time\nin loss"):
        attempts.failed(of_workers(DEAD), lambda: "in loss")
