"""From a run to its checkpoint and back; of a sharded run, all workers together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.checkpoints.format import SINCE, Checkpoint, load_checkpoint
from trainers.loop.distributed import as_sharded, whole
from trainers.loop.state import SinceReport, TrainState
from trainers.weights.averaging import swapped_in

SCALE = "text.logit_scale"
"""What sharded runs have in another shape: they have no scalars."""


def snapshot(run: TrainState) -> Checkpoint | None:
    """All that the run needs to go on: as its last evaluation left it, or between two of them.

    Between two, what is deployed is not known. The weights are then those that train, with the head
    of the last evaluation: good to go on from, and for nothing else.

    Of a sharded run every worker must ask for it, and the first one alone is given it, on the CPU.
    """
    deploys_others = run.eval_weights is not None and not run.is_between_reports
    kept = run.eval_weights if run.eval_weights is not None and deploys_others else run.weights
    with swapped_in(run.student.trained, kept):
        state = run.config.method.merged_state(run.student)
        plain = _collected(run, state)
    if run.eval_head is not None:
        plain["head"] = run.eval_head
    if SCALE in plain:
        plain[SCALE] = plain[SCALE].reshape_as(cast(Tensor, run.zero_shot.clip.logit_scale))
    # If a method merged what it trained, the trained tensors cannot be read from plain weights.
    merged = any(_plain_name(name) not in state for name in run.student.trained)
    goes_on_elsewhere = merged or deploys_others
    training: dict[str, Any] = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "micro_batch_size": run.micro_batch_size,
        "temperature": run.temperature,
        "average": None if run.average is None else _collected(run, run.average),
        "trained": _collected(run, run.weights) if goes_on_elsewhere else None,
        "deployed": _collected(run, kept) if merged else None,
        SINCE: {
            "step": run.since.step,
            "seconds": run.since.seconds,
            "sums": run.since.all_sums if run.is_between_reports else None,
        },
    }
    training["optimizer"]["state"] = {
        index: _collected(run, state) for index, state in training["optimizer"]["state"].items()
    }
    first = run.rank == 0 or not _is_sharded(run)
    return Checkpoint(plain, training, run.progress, tuple(run.reports)) if first else None


def restore(run: TrainState, folder: Path) -> None:
    """Bring a run that has not begun to where the one was whose checkpoint the folder holds.

    It may have had another number of workers, and have been sharded or not.

    Raises:
        ConfigError: what `load_checkpoint` refuses.
    """
    checkpoint = load_checkpoint(folder, run.class_names, "cpu" if _is_sharded(run) else run.device)
    training, parameters = checkpoint.training, run.student.trained

    def fitted(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if tensors is None:
            tensors = {name: checkpoint.weights[_plain_name(name)] for name in parameters}
        return {name: as_sharded(tensors[name], like) for name, like in parameters.items()}

    with torch.no_grad():
        for name, value in fitted(training["trained"]).items():
            parameters[name].copy_(value)
    if training["trained"] is not None:
        run.eval_weights = fitted(training["deployed"])
    if run.average is not None and training["average"] is not None:
        run.average = fitted(training["average"])
    if run.student.text is not None:
        run.eval_head = checkpoint.weights["head"].to(run.device)
    run.optimizer.load_state_dict(_sharded_state(training["optimizer"], list(parameters.values())))
    run.scaler.load_state_dict(training["scaler"])
    run.micro_batch_size = min(training["micro_batch_size"], run.micro_batch_size)
    run.temperature = training["temperature"]
    run.progress, run.reports = checkpoint.progress, [dict(r) for r in checkpoint.reports]
    run.since = _since(training[SINCE], run)


def _since(saved: Mapping[str, Any], run: TrainState) -> SinceReport:
    """A worker's share of what was done since the last report."""
    since = SinceReport.now(saved["step"], run.device)
    if saved["sums"] is not None:
        sums: Tensor = saved["sums"].to(run.device)
        if len(sums) != run.world_size:  # of others, more or fewer
            sums = sums.mean(0).repeat(run.world_size, 1)
        since.sums += sums[run.rank]
        since.seconds = saved["seconds"]
        since.all_sums = sums  # the run is saved again when it repeats its last report
    return since


def _is_sharded(run: TrainState) -> bool:
    return run.config.parallel == "fsdp" and run.world_size > 1


def _collected(run: TrainState, tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Those of a sharded run one after the other, put together for its first worker alone."""
    if not _is_sharded(run):
        return dict(tensors)
    found = {}
    for name, value in tensors.items():
        tensor = whole(value)
        if run.rank == 0:
            found[name] = tensor.cpu()
    return found


def _plain_name(name: str) -> str:
    """A student's parameter as `Student.plain_state` calls it."""
    return name.replace("text.clip.", "text.", 1) if name.startswith("text.clip.") else name


def _sharded_state(state_dict: dict[str, Any], parameters: list[nn.Parameter]) -> Any:
    """An optimiser's state, each moment sharded as its parameter is."""
    state = {
        index: {
            key: value if key == "step" else as_sharded(value, parameters[index])
            for key, value in of_parameter.items()
        }
        for index, of_parameter in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
