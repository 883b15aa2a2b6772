"""The configuration of one fine-tuning, `TrialConfig`, validated before anything starts.

It is immutable, independent of searching, and complete: two runs with equal configurations give
equal metrics on CPUs (GPUs add up in any order). Keys on the command line, in search spaces and in
MLflow are the dotted paths of these fields, such as ``optim.lr``. The fields of data, models,
methods and evaluation are defined beside their code; those that the training loop reads are here.
"""

import logging
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from trainers.config_model import Frozen
from trainers.data.config import DataConfig
from trainers.data.roots import domain_files
from trainers.data.schema import read_headers
from trainers.data.store import open_root
from trainers.errors import ConfigError, suggestion, validate
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.metrics import metric_names
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.methods.registry import METHODS, MethodConfig, is_available, load_plugins
from trainers.models.config import ModelConfig
from trainers.overrides import METHOD_KEY, nest

logger = logging.getLogger(__name__)
say_once = cache(logger.warning)

PrecisionName: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
ClassWeight: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]


class OptimConfig(Frozen):
    """AdamW with linear warm-up and cosine decay to 0."""

    lr: float = Field(default=1e-5, gt=0, le=1000)
    """Peak learning rate."""
    head_lr_factor: float = Field(default=1, gt=0, le=1e6)
    """Learning rate of a trained head as a multiple of `lr`. Its weight decay is divided by it, so
    that the head decays as fast at any factor. At 0.01 the head trains as that of WiSE-FT's code,
    which contains CLIP's scale of 100. The first stage of LP-FT does not use it."""
    layer_decay: float = Field(default=1, gt=0, le=1)
    """Learning rate of a layer of an encoder as a multiple of that of the next one above: the last
    block trains at `layer_decay` times the rate of the output projection, the embedding at the
    lowest rate. Weight decay falls with it, as in timm."""
    batch_size: int = Field(default=256, ge=1, le=10**6)
    """Images of a step over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=10**6)
    """Images that go through a worker's model at once. A step then has several parts, with the
    same gradient. null is a worker's whole share. It is halved if memory runs out: by a worker that
    is alone on the spot, by several in a new attempt from the last checkpoint."""
    clip_grad_norm: float | None = Field(default=None, gt=0, le=1e6)
    """Maximum norm of all gradients together; null does not clip."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.0, ge=0, le=1000)
    """AdamW's decoupled weight decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's decay rates of the moment estimates."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    """AdamW's term for numerical stability."""

    def lr_at(self, step: int, steps: int, peak: float | None = None) -> float:
        """Linear warm-up to the peak, by default `lr`, then a cosine to 0; `step` is from 0."""
        peak = self.lr if peak is None else peak
        warmup = round(self.warmup_fraction * steps)
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    def share(self, workers: int) -> int:
        """Images of a step for each of several workers, whose shares must be equal.

        DDP averages their gradients as if all had as many images, and contrastive losses gather
        their features.
        """
        share, rest = divmod(self.batch_size, workers)
        if rest:
            problem = f"{workers} workers cannot share it evenly"
            even = [n * workers for n in (share, share + 1) if n]
            hint = " or ".join(map(str, even))
            raise ConfigError(problem, key="optim.batch_size", value=self.batch_size, hint=hint)
        return share

    def micro_batch_of(self, share: int) -> int:
        """Images of a worker's share that go through the model at once, if memory suffices."""
        return share if self.micro_batch_size is None else min(self.micro_batch_size, share)


def first_learning_rate(parameters: int, steps: int) -> float:
    """A peak learning rate of AdamW for a model without published settings, to two digits.

    ``1e-5 sqrt(86.2e6 / parameters) sqrt(5000 / steps)``: that of Lipsum-FT's authors for the image
    encoder of CLIP ViT-B/16 in 5000 steps, transferred to another model and length. At equal depth,
    the root of the number of parameters is proportional to the width of a network, and AdamW's best
    learning rate to its inverse (Yang et al., "Tensor Programs V", arXiv 2203.03466). An Adam step
    moves each weight by about the learning rate, so that ``1 / sqrt(steps)`` is the rate of the
    bounds for stochastic gradient methods, and that with which independent steps move a weight as
    far in any number of steps. `parameters` are those of the image encoder that train.
    """
    return float(f"{1e-5 * math.sqrt(86.2e6 / parameters * 5000 / steps):.1e}")


class TrialConfig(Frozen):
    """The configuration of one fine-tuning."""

    plugins: tuple[str, ...] = ()
    """Modules that register methods of your own: importable names, or paths of `.py` files. The
    driver and all workers import them."""
    model: ModelConfig = ModelConfig()
    """The zero-shot model that is fine-tuned."""
    data: DataConfig = DataConfig()
    """Images, domains and class names."""
    method: MethodConfig = LipsumFineTuning()
    """The fine-tuning method, by its `name`, and its settings."""
    optim: OptimConfig = OptimConfig()
    """The optimiser and its learning-rate schedule."""
    eval: EvalConfig = EvalConfig()
    """Evaluation on the validation splits."""
    steps: int = Field(default=5000, ge=1, le=10**9)
    """Optimiser steps."""
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    """Passes over the training images, in place of `steps`: when a configuration is read, they
    become the number of steps that has so many images."""
    class_weights: Literal["auto"] | dict[str, ClassWeight] | None = None
    """Weights of classes in the cross-entropy, by the names of their folders; others have 1. `auto`
    is the inverse of the number of training images. Their mean over the training images is made 1.
    Methods whose loss has no such term refuse them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of batches, image views and random texts: all are functions of (seed, step, sample)."""
    precision: PrecisionName = "auto"
    """Precision of the encoders' forward pass; `auto` is bfloat16 autocast on GPUs that have it.
    `tf32` is float32 whose matrix products GPUs from Ampere on round to 10 bits, several times as
    fast."""
    compile: bool = False
    """Compile the encoders with `torch.compile`."""
    zero_shot_cache_gb: float = Field(default=5, ge=0, le=1e6)
    """Limit of the zero-shot model's features that each machine keeps for all trials (10^9 bytes),
    of which a set may take half of the free disk. Those of training views and random texts are
    rounded to float16. 0 computes them in each trial, without rounding."""

    @model_validator(mode="before")
    @classmethod
    def _plugins_are_loaded(cls, values: Any) -> Any:
        """Import the plugins before `method` is validated against the registered methods."""
        given = values.get("plugins", ()) if isinstance(values, Mapping) else ()
        if not isinstance(given, list | tuple) or not all(isinstance(m, str) for m in given):
            return values  # reported by the field's own validation
        plugins = [
            str(Path(module).expanduser().absolute()) if module.endswith(".py") else module
            for module in given
        ]
        load_plugins(plugins)
        return {**values, "plugins": tuple(plugins)} if plugins else values

    @model_validator(mode="after")
    def _epochs_become_steps(self) -> Self:
        if self.epochs is None:
            self.model_fields_set.discard("epochs")  # `null`, as a recorded configuration has it
            return self
        if "steps" in self.model_fields_set:
            raise ValueError("epochs: steps is given, too; leave one of them out")
        batch_size = self.optim.batch_size
        images = training_images(self.data)
        steps = max(1, round(self.epochs * images / batch_size))
        say_once(f"epochs = {self.epochs:g}: {steps} steps of {batch_size} of {images} images")
        object.__setattr__(self, "steps", steps)  # pydantic has no public way
        object.__setattr__(self, "epochs", None)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain values: the receiving process loads the plug-ins before the method."""
        return TrialConfig.model_validate, (self.model_dump(mode="json"),)

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        name = self.method.name
        if METHODS.get(name) is type(self.method) and not is_available(name, self.plugins):
            module = type(self.method).__module__
            problem = f"it is registered by {module}, which workers do not import"
            hint = "name its file or module under `plugins`"
            raise ConfigError(problem, key="method.name", value=name, hint=hint)
        if self.class_weights is not None and not self.method.weighs_classes:
            raise ValueError(
                f"class_weights: the loss of method.name = {name!r} has no such weights"
            )
        if self.eval.ema is not None and self.method.ema is not None:
            problem = f"eval.ema: method.name = {name!r} has a moving average of its own"
            raise ValueError(problem)
        known = metric_names(self.data)
        for metric in self.eval.line_goal.metrics if self.eval.line_goal else ():
            if metric not in known:
                problem = "is no metric of the validation splits"
                close = suggestion(metric, known)
                raise ConfigError(problem, key="eval.line_goal", value=metric, hint=close)
        return self


def training_images(data: DataConfig) -> int:
    """The number of training images, by the headers of their files."""
    store = open_root(data.root)
    files = domain_files(store, data.id_domain, "train")
    return sum(header.rows for header in read_headers(store, files))


def with_overrides(config: TrialConfig, overrides: Mapping[str, Any], source: str) -> TrialConfig:
    """The configuration with other values for dotted keys, validated again as a whole.

    Another `method.name` drops all settings of the method before. Errors name the `source`, such as
    the file or `--set`.
    """
    trial = config.model_dump(mode="json")
    if overrides.get(METHOD_KEY, config.method.name) != config.method.name:
        del trial["method"]
    return validate(TrialConfig, nest(overrides, trial), source)
