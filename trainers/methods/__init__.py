"""Fine-tuning methods: what is trained, what is minimised, and which weights are kept.

One module for each method, named as in the configuration; `base` has the interface and `registry`
the table of all methods. Importing this package registers the shipped methods.
"""

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
from trainers.methods.ema import AveragedFineTuning
from trainers.methods.flyp import ContrastiveFineTuning
from trainers.methods.ft import FineTuning
from trainers.methods.kd import Distillation
from trainers.methods.l2_sp import L2SP
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.methods.lp_ft import LinearProbeFineTuning
from trainers.methods.r_adapter import ResidualAdapter
from trainers.methods.registry import (
    METHODS,
    SEARCH_SPACES,
    MethodConfig,
    load_plugins,
    register_method,
)
from trainers.methods.star_ft import StarFineTuning
from trainers.methods.tpgm import ProjectedFineTuning
from trainers.methods.wise_ft import WiseFineTuning

__all__ = [
    "L2SP",
    "METHODS",
    "SEARCH_SPACES",
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
    "load_plugins",
    "register_method",
]
