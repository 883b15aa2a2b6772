"""What the fine-tuning minimises: one module a method, one interface (`base.Method`)."""

from typing import Annotated, TypeAlias

from pydantic import Field

from trainers.methods.averaging import AveragedFineTuning
from trainers.methods.base import (
    Batch,
    Loss,
    Method,
    Stage,
    Step,
    StepRandom,
    Trained,
    Weights,
    check_method_fits,
)
from trainers.methods.car_ft import ContextAwareFineTuning
from trainers.methods.carot import CaRot
from trainers.methods.distillation import Distillation
from trainers.methods.fine_tuning import FineTuning
from trainers.methods.flyp import ContrastiveFineTuning
from trainers.methods.interpolating import WiseFineTuning
from trainers.methods.l2_sp import L2SP
from trainers.methods.linear_probing import LinearProbeFineTuning
from trainers.methods.lipsum import LipsumFineTuning
from trainers.methods.projecting import ProjectedFineTuning
from trainers.methods.r_adapter import ResidualAdapter
from trainers.methods.star_ft import StarFineTuning

MethodConfig: TypeAlias = Annotated[
    FineTuning
    | LinearProbeFineTuning
    | AveragedFineTuning
    | WiseFineTuning
    | ProjectedFineTuning
    | L2SP
    | Distillation
    | ContextAwareFineTuning
    | LipsumFineTuning
    | ContrastiveFineTuning
    | StarFineTuning
    | CaRot
    | ResidualAdapter,
    Field(discriminator="name"),
]
"""Any of them, told apart by `name`."""

__all__ = [
    "L2SP",
    "AveragedFineTuning",
    "Batch",
    "CaRot",
    "ContextAwareFineTuning",
    "ContrastiveFineTuning",
    "Distillation",
    "FineTuning",
    "LinearProbeFineTuning",
    "LipsumFineTuning",
    "Loss",
    "Method",
    "MethodConfig",
    "ProjectedFineTuning",
    "ResidualAdapter",
    "Stage",
    "StarFineTuning",
    "Step",
    "StepRandom",
    "Trained",
    "Weights",
    "WiseFineTuning",
    "check_method_fits",
]
