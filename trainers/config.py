"""What one fine-tuning is: a `TrialConfig`, validated before anything starts.

The object is frozen, knows nothing of searching, and says everything that a run needs; two runs
with equal configurations give equal metrics. Keys on the command line, in search spaces and in
MLflow are the dotted paths of these fields, such as ``optim.lr``. The model's and the methods' own
fields are defined beside their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainers.dotted import nest
from trainers.errors import validate
from trainers.methods import FineTuning, LipsumFineTuning
from trainers.models import ModelConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Frozen):
    """Where the pictures are, and which domain is in-distribution (ID)."""

    root: str = "openmoji"
    """A folder with `<domain>/<split>/*.parquet`; `openmoji` is the embedded benchmark."""
    id_domain: str = "real"
    """Fine-tuned on its train split."""
    ood_domains: tuple[str, ...] = ("painting", "clipart", "infograph", "sketch")
    """Only ever evaluated: the distribution shifts."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of a picture's area that a random crop of training covers."""
    workers: int = Field(default=0, ge=0)
    """Processes a training worker that decode pictures; 0 decodes in the training process."""

    @model_validator(mode="after")
    def _domains_differ(self) -> DataConfig:
        names = [self.id_domain, *self.ood_domains]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the domain {twice[0]!r} is named twice in id_domain and ood_domains")
        return self

    @field_validator("crop_area")
    @classmethod
    def _area_is_a_range(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError("expected two shares, 0 < least <= greatest <= 1")
        return area


class OptimConfig(_Frozen):
    """AdamW with linear warm-up and cosine decay to 0."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=256, ge=1)
    """Pictures a step over all workers."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the moment estimates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's term for numerical stability."""


class EvalConfig(_Frozen):
    """When and how the validation splits are evaluated."""

    every: int = Field(default=1000, ge=1)
    """Steps from one evaluation to the next; the last step is always evaluated."""
    batch_size: int = Field(default=256, ge=1)
    """Pictures a forward pass."""


MethodConfig = Annotated[FineTuning | LipsumFineTuning, Field(discriminator="name")]


class TrialConfig(_Frozen):
    """One fine-tuning, whole."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    method: MethodConfig = LipsumFineTuning()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    steps: int = Field(default=5000, ge=1)
    """Optimiser steps."""
    seed: int = Field(default=0, ge=0)
    """Of batches, views and random texts: all are functions of (seed, step, sample)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the encoders' forward pass; `auto` is bfloat16 autocast on GPUs that have it."""


def with_overrides(config: TrialConfig, overrides: Mapping[str, Any], source: str) -> TrialConfig:
    """`config` with dotted keys laid over it, validated again as a whole.

    Args:
        config: the base.
        overrides: such as ``{"optim.lr": 1e-4, "method.reg_weight": 0.3}``.
        source: named in the error message, e.g. the file or `--set`.

    Raises:
        ConfigError: an unknown key or a value out of its range.
    """
    return validate(TrialConfig, nest(overrides, config.model_dump(mode="json")), source)
