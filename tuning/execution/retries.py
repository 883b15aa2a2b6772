"""Attempts at a training: repeated if a machine failed, not if the training failed.

`max_failures` of Ray Train does not make this difference: a diverged loss, a mistake in the
configuration or a bug would be repeated again and again. So it is 0 here, and failures are
classified by the types of their errors and by where these come from. Ray Train itself handles nodes
that announce their end; they do not count here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

import ray
import torch
import torch.distributed as dist
from ray import exceptions as ray_errors

from trainers.errors import MicroBatchTooLarge, first_line
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import fitting_trials
from tuning.execution.ray_workarounds import draining_nodes
from tuning.runs.errors import wrapped_errors

_LOST: Final = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
    ray_errors.ObjectLostError,
    ray_errors.OutOfMemoryError,
    ray_errors.RpcError,
)
"""Errors of Ray about a process that is gone: killed, out of memory, lost with its node."""
_LOADER: Final = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|killed by signal)")
"""Of PyTorch about a process that decodes images, which is mostly killed for want of memory."""

_NOT_OF_THE_GPU: Final = (2, 710)
"""`cudaErrorMemoryAllocation`: memory outside of PyTorch's allocator is exhausted, such as that for
the context of one more process on a shared GPU. `cudaErrorAssert`: a check in a kernel failed, such
as an index out of range."""

_GLOO: Final = re.compile(r"\[\S*gloo/\S+:\d+\]")
"""Gloo's errors have no type of their own (PyTorch 2.13), but contain the line that raised, such as
`[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537]`."""
_NCCL_MISUSE: Final = re.compile("ncclInvalid(Usage|Argument)")
"""Results of NCCL for a wrong call, as they are named in the message of a DistBackendError."""


GPU_FAILURES: Final = 2
"""Number of GPU failures on a node, without a finished trial in between, after which trials avoid
the node."""


MICRO_BATCH_HALVINGS: Final = 5
"""Attempts at a training that may end because several workers need a smaller micro-batch."""


class MachinesLost(RuntimeError):
    """A training lost its workers more often than `search.resources.max_failures` allows."""


class TrainingHangs(RuntimeError):
    """A training has hung twice, see `search.resources.hang_after_s`; with the stacks."""


class FaultyNodes:
    """Nodes on which GPUs fail repeatedly. Trials avoid them while other nodes can hold a trial.

    A trial whose GPUs fail on different nodes is at fault itself, and its failures do not count.
    """

    def __init__(self, resources: ResourcesConfig) -> None:
        self.resources = resources
        self._failures: list[tuple[str, str]] = []  # trial and node of each

    def failed(self, trial: str, error: Exception) -> str:
        """Count the failed GPUs behind an error of Ray Train.

        Returns:
            A clause for the log if a node is avoided from now on, else an empty text.
        """
        gpus = [one for one in _innermost(error) if _is_of_accelerator(one)]
        nodes = {node for gpu in gpus if (node := getattr(gpu, "node", None)) is not None}
        before = self._avoided()
        self._failures += [(trial, node) for node in nodes]
        if not (new := [node for node in self._avoided() if node not in before]):
            return ""
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        names = ", ".join(f"{addresses.get(node, 'unknown')} ({node[:8]})" for node in new)
        effect = "trials avoid it" if self.placement() else "no other node can hold a trial"
        return f"; {GPU_FAILURES} GPU failures in a row on node {names}: {effect}"

    def finished(self) -> None:
        """Count again from 0, except on the nodes that are avoided already."""
        avoided = self._avoided()
        self._failures = [failure for failure in self._failures if failure[1] in avoided]

    def placement(self) -> dict[str, Any]:
        """Arguments of `torch_trainer` beside those of `resources.per_trial()`."""
        avoided = self._avoided()
        alive = [node for node in ray.nodes() if node["Alive"]] if avoided else []
        others = [node["Resources"] for node in alive if node["NodeID"] not in avoided]
        return {"avoid": avoided} if fitting_trials(others, self.resources) else {}

    def _avoided(self) -> list[str]:
        nodes_of = defaultdict[str, set[str]](set)
        for trial, node in self._failures:
            nodes_of[trial].add(node)
        counts = Counter(node for trial, node in self._failures if len(nodes_of[trial]) == 1)
        return [node for node, count in counts.items() if count >= GPU_FAILURES]


class Attempts:
    """Counts the failures of machines during one training, and tells them to `nodes`."""

    def __init__(self, name: str, nodes: FaultyNodes) -> None:
        self._name, self._nodes, self._max_failures = name, nodes, nodes.resources.max_failures
        self._failures, self._hangs, self._halved, self._known_nodes = 0, 0, 0, set[str]()

    def failed(self, error: Exception, stacks: Callable[[], str] = str) -> str:
        """If the training should be repeated after this error of Ray Train, say so.

        Args:
            stacks: those of workers that ended because they hung, if any did.

        Raises:
            MachinesLost: more machines failed than `max_failures`.
            TrainingHangs: it has hung for the second time.
            Exception: the error itself, if it is not the failure of a machine.
        """
        smaller = [e for e in _innermost(error) if isinstance(e, MicroBatchTooLarge)]
        if smaller and self._halved < MICRO_BATCH_HALVINGS:
            self._halved += 1
            return f"{self._name} is repeated from its newest checkpoint: {smaller[0]}"
        failure = machine_failure(error)
        if failure is None:
            raise error
        if hung := stacks():
            self._hangs += 1
            reason = f"no step or batch in {self._nodes.resources.hang_after_s:g} s"
            if self._hangs > 1:
                raise TrainingHangs(f"{reason}, for the second time\n{hung}") from error
            return f"{self._name} is repeated from its newest checkpoint: {reason}\n{hung}"
        # Ray Train repeats the training itself if a node had announced its end, unless the
        # other workers notice the loss before it does.
        announced = draining_nodes().keys() - self._known_nodes
        self._known_nodes |= announced
        self._failures += not announced
        avoided = self._nodes.failed(self._name, error)
        reason = f"{type(failure).__name__}: {first_line(failure)}{avoided}"
        if self._failures > self._max_failures:
            raise MachinesLost(
                f"workers were lost {self._failures} time(s), and "
                f"search.resources.max_failures = {self._max_failures}: {reason}"
            ) from error
        return f"{self._name} is repeated from its newest checkpoint: {reason}"


def fitting_micro_batch(error: BaseException) -> int | None:
    """Images at once that fit, if several workers have run out of memory."""
    sizes = [e.micro_batch_size for e in _innermost(error) if isinstance(e, MicroBatchTooLarge)]
    return min(sizes, default=None)


def machine_failure(error: BaseException) -> BaseException | None:
    """The failure of a machine behind an error of Ray Train; None if the training itself failed.

    If a worker is gone, the errors of the others follow from that. If all are there, and each of
    them raised nothing but that a peer does not answer, Ray has not noticed yet that one is gone.
    An actor that could not be created is no failure of a machine: its constructor raised.
    """
    errors = [e for e in _innermost(error) if not getattr(e, "actor_init_failed", False)]
    lost = next(
        (e for e in errors if _is_lost(e) or _is_of_ray_train(e) or _is_of_accelerator(e)), None
    )
    if lost is None and errors and all(map(_is_of_peer, errors)):
        return errors[0]
    return lost


def _innermost(error: BaseException) -> Iterator[BaseException]:
    """The errors of all workers that an error of Ray Train wraps."""
    wrapped = [] if _is_lost(error) else list(wrapped_errors(error))
    if not wrapped:
        yield error
    for one in wrapped:
        yield from _innermost(one)


def _is_lost(error: BaseException) -> bool:
    """Whether a process is gone."""
    if type(error) is RuntimeError and _LOADER.match(str(error)):
        return True
    return isinstance(error, _LOST)


def _is_of_ray_train(error: BaseException) -> bool:
    """Whether Ray Train itself raised it: a worker has not answered for minutes, or did not start.

    Trainings raise no error of Ray Train. Most of its classes are private.
    """
    return type(error).__module__.startswith("ray.train")


def _is_of_accelerator(error: BaseException) -> bool:
    """Whether a GPU failed: uncorrectable ECC error, failed launch, lost device, ..."""
    is_one = isinstance(error, torch.AcceleratorError)
    return is_one and getattr(error, "error_code", None) not in _NOT_OF_THE_GPU


def _is_of_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because another worker does not answer."""
    if isinstance(error, dist.DistError):
        return _NCCL_MISUSE.search(str(error)) is None
    return type(error) is RuntimeError and _GLOO.search(str(error)) is not None
