"""Weights of checkpoints, evaluated by a process that does not train them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.errors import validate
from trainers.loop.state import TrainState, start

TEXT = "text."
"""What the weights of a text encoder begin with, where it trained."""


def evaluator(
    config: TrialConfig, trains_text: bool, device: torch.device | str | None = None
) -> TrainState:
    """A run of one worker whose student takes the weights of checkpoints, whatever trained them.

    Args:
        config: of the run that they come from.
        trains_text: whether the text encoder trained in it.
        device: where it evaluates; by default a GPU if there is one.

    Raises:
        ConfigError: the data or the model do not fit the configuration.
    """
    return start(evaluated(config, trains_text), device=device)


def evaluated(config: TrialConfig, trains_text: bool) -> TrialConfig:
    """What of a configuration counts for evaluation, the same for all trials of a search."""
    kept = config.model_dump(mode="json", include={"model", "data", "precision"})
    size = {"batch_size": config.eval.batch_size}
    method = {"name": "flyp" if trains_text else "ft"}
    return validate(TrialConfig, {**kept, "eval": size, "method": method}, "evaluation")


@torch.no_grad()
def hold(run: TrainState, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of a checkpoint, with its head, into an evaluator's student."""
    student = run.student
    student.visual.load_state_dict(_below("visual.", weights))
    if student.text is None:
        student.head.copy_(weights["head"])
    else:
        student.text.clip.load_state_dict(_below(TEXT, weights))
        student.head = weights["head"].to(run.device)


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
