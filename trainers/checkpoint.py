"""Checkpoints of one fine-tuning: weights as safetensors, the optimiser's state beside them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model

from trainers.student import Student

WEIGHTS = "student.safetensors"
STATE = "training_state.pt"


@dataclass
class Progress:
    """How far a run is, and what it has cost, over all of its parts."""

    step: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0


def save_checkpoint(
    folder: Path, student: Student, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write all that is needed to go on bit for bit; nothing else is random or stateful."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(student, str(folder / WEIGHTS))
    state = {"optimizer": optimizer.state_dict(), "progress": dataclasses.asdict(progress)}
    torch.save(state, folder / STATE)


def load_checkpoint(folder: Path, student: Student, optimizer: torch.optim.Optimizer) -> Progress:
    """Load what `save_checkpoint` wrote into `student` and `optimizer`."""
    device = str(student.head.device)
    load_model(student, str(folder / WEIGHTS), device=device)
    state = torch.load(folder / STATE, map_location=device, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
