"""A trainer started anew when its machines fail it, and left alone when it fails by itself.

Ray Train's own `max_failures` does not ask which of the two it was: a loss that is no number, a
mistake in the configuration or a fault in the program would be trained towards again and again. So
it is 0 here. Nodes that announce their end are Ray Train's matter, and those it is too late to see
are not counted here either.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ray import exceptions as ray_errors
from ray.train import Result
from ray.train.v2._internal.constants import VALIDATE_STORAGE_MARKER_FILENAME

from trainers.data.storage import Store
from trainers.errors import first_line, storage_failures
from trainers.ray_trainer import open_storage, torch_trainer
from tuning.checkpoints.repair import repair
from tuning.execution.ray_workarounds import WorkerHealthCheckTimeoutError, draining_nodes

logger = logging.getLogger(__name__)

_LOST = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
    ray_errors.ObjectLostError,
    ray_errors.OutOfMemoryError,
    ray_errors.RpcError,
    WorkerHealthCheckTimeoutError,
)
"""What Ray says of a process that is gone, with its node, by a kill or for want of memory, or that
has not answered for minutes."""

_OF_PEERS = re.compile(
    r"gloo|nccl|closed by peer|connection (reset|refused|closed)|broken pipe|socket", re.IGNORECASE
)
"""In the message of a RuntimeError: the worker at the other end is gone."""


class MachinesLost(RuntimeError):
    """A training lost its workers more often than it may."""


def fit(
    config: str,
    *,
    name: str,
    storage_path: Path | str,
    resources: Mapping[str, Any],
    **arguments: Any,
) -> Result:
    """Run `torch_trainer` to its end, and again from its last checkpoint when a machine is lost.

    Args:
        config: the `TrialConfig` as JSON.
        name: of the trainer.
        storage_path: of the trainer.
        resources: of the trainer, and how many such losses it survives: `max_failures`, by default
            none.
        arguments: all others of the trainer.

    Raises:
        MachinesLost: one time too many.
        StorageFailed: there can be no checkpoints.
        Exception: what the training itself raised, as Ray Train tells it.
    """
    of_trainer, known = dict(resources), set[str]()
    allowed, losses = of_trainer.pop("max_failures", 0), 0
    while True:
        _make_ready(open_storage(storage_path).at(name))
        trainer = torch_trainer(
            config, name=name, storage_path=storage_path, **arguments, **of_trainer
        )
        try:
            return trainer.fit()
        except Exception as error:
            lost = machine_failure(error)
            if lost is None:
                raise
            # Ray Train restarts it for such a node by itself, unless what is left of the workers
            # misses the others before it does.
            announced = draining_nodes().keys() - known
            known |= announced
            losses += not announced
            said = f"{type(lost).__name__}: {first_line(lost)}"
            if losses > allowed:
                raise MachinesLost(
                    f"workers were lost {losses} time(s), and search.resources.max_failures = "
                    f"{allowed}: {said}"
                ) from error
            logger.warning("%s starts anew: %s", name, said)


def _make_ready(folder: Store) -> None:
    """What Ray Train's controller does first, in a constructor of which no error tells the cause:
    it writes into the trial's folder, and reads its list of checkpoints, which a kill may tear."""
    repair(folder)
    with (
        storage_failures(folder.url, "cannot be written"),
        folder.write(VALIDATE_STORAGE_MARKER_FILENAME) as file,
    ):
        file.write(b"")


def machine_failure(error: BaseException) -> BaseException | None:
    """What happened to a machine, out of what Ray Train raised; None where training failed itself.

    Where one worker is gone, what the others say follows from it. Where all are there, and none
    says anything but that its peer is gone, Ray does not know yet what they do. An actor that could
    not be made is no loss: its constructor raised.
    """
    raised = [e for e in _innermost(error) if not getattr(e, "actor_init_failed", False)]
    lost = next((e for e in raised if isinstance(e, _LOST)), None)
    if lost is None and raised and all(map(_misses_a_peer, raised)):
        return raised[0]
    return lost


def _innermost(error: BaseException) -> Iterator[BaseException]:
    """The errors that an account of Ray's is about, of all workers."""
    workers = getattr(error, "worker_failures", None) or {}
    names = ("controller_failure", "health_check_failure", "cause")
    others = [getattr(error, name, None) for name in names]
    inner = [e for e in (*workers.values(), *others) if isinstance(e, BaseException)]
    inner = [e for e in inner if e is not error]
    if isinstance(error, _LOST) or not inner:
        yield error
    for one in inner:
        yield from _innermost(one)


def _misses_a_peer(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _OF_PEERS.search(str(error)) is not None
