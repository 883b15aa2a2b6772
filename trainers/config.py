"""What one fine-tuning is: a `TrialConfig`, validated before anything starts.

The object is frozen, knows nothing of searching, and says everything that a run needs; two runs
with equal configurations give equal metrics. Keys on the command line, in search spaces and in
MLflow are the dotted paths of these fields, such as ``optim.lr``. The model's and the methods' own
fields are defined beside their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainers.data.data_root import EMBEDDED
from trainers.data.suite import Suite, load_suite, resolve_suite
from trainers.errors import ConfigError, validate
from trainers.frozen import Frozen
from trainers.loop.precision import PrecisionName
from trainers.methods import LipsumFineTuning, MethodConfig, load_plugins
from trainers.models import ModelConfig
from trainers.overrides import over_trial


class DataConfig(Frozen):
    """Where the images are, and which domain is in-distribution (ID)."""

    root: str = EMBEDDED
    """A folder or URL (`s3://bucket/data`) with `<domain>/<split>/*.parquet`; `openmoji` is the
    embedded benchmark."""
    suite: str | Suite | None = None
    """A packaged suite by name, or one of your own: a YAML file or its keys, which then become
    part of the configuration. It says what the domains are, unless the next two keys do, and what
    prompts call the classes; without one, folder names with spaces for underscores."""
    id_domain: str = "real"
    """Fine-tuned on its train split."""
    ood_domains: tuple[str, ...] = ("painting", "clipart", "infograph", "sketch")
    """Only ever evaluated: the distribution shifts."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of an image's area that a random crop of training covers."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Share of an image that evaluation crops; null is what the data say, else 224/256."""
    cache_gb: float = Field(default=100, gt=0)
    """Limit of the local cache of opened data sets on each machine (10^9 bytes)."""
    workers: int = Field(default=0, ge=0)
    """Processes a training worker that decode images; 0 decodes in the training process."""

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str) -> str:
        """The same folder for workers and resumed runs, which may start in another one."""
        if root == EMBEDDED or "://" in root:
            return root
        return str(Path(root).expanduser().absolute())

    @field_validator("suite", mode="before")
    @classmethod
    def _suite_is_whole(cls, suite: Any) -> str | Suite | None:
        return resolve_suite(suite)

    @model_validator(mode="before")
    @classmethod
    def _suite_names_the_domains(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        try:
            suite = resolve_suite(values.get("suite"))
        except ConfigError:
            return values  # which the field's own validation refuses
        if suite is None:
            return values
        rules = load_suite(suite) if isinstance(suite, str) else suite
        filled = {"id_domain": rules.id_domain, **values, "suite": suite}
        domains = rules.ood_domains
        if filled["id_domain"] in domains:  # one of its shifts is fine-tuned on instead
            domains = (rules.id_domain, *domains)
        others = tuple(name for name in domains if name != filled["id_domain"])
        return {"ood_domains": others, **filled}

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

    @property
    def domains(self) -> tuple[str, ...]:
        """All of them, the ID domain first."""
        return (self.id_domain, *self.ood_domains)

    @property
    def cache_bytes(self) -> int:
        """`cache_gb` in bytes."""
        return int(self.cache_gb * 1e9)

    @property
    def rules(self) -> Suite:
        """The suite itself; without one, classes are called by their names, spaces put in."""
        if isinstance(self.suite, str):
            return load_suite(self.suite)
        return self.suite or Suite(
            name="none", id_domain=self.id_domain, ood_domains=self.ood_domains
        )


class OptimConfig(Frozen):
    """AdamW with linear warm-up and cosine decay to 0."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=256, ge=1)
    """Images a step over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Images that go through a worker's model at once: a step is then made of several parts,
    with the same gradient. null is a worker's whole share; it is halved where memory is short."""
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """Limit of the norm of all gradients together."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the moment estimates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's term for numerical stability."""


class EvalConfig(Frozen):
    """When and how the validation splits are evaluated."""

    every: int = Field(default=1000, ge=1)
    """Steps from one evaluation to the next; the last step is always evaluated."""
    batch_size: int = Field(default=256, ge=1)
    """Images a forward pass."""
    wise_alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Evaluated once, after the last step: points on the line from the zero-shot model's weights
    (0) to the fine-tuned ones (1), which is WiSE-FT's curve of ID and OOD accuracy."""

    @field_validator("wise_alphas")
    @classmethod
    def _alphas_differ(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        names = [f"{alpha:g}" for alpha in alphas]  # as in the names of metrics
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice")
        return alphas


class TrialConfig(Frozen):
    """One fine-tuning, whole."""

    plugins: tuple[str, ...] = ()
    """Modules that register methods of your own: importable names, or paths of `.py` files. The
    driver and every worker import them."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    method: MethodConfig = LipsumFineTuning()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    steps: int = Field(default=5000, ge=1)
    """Optimiser steps."""
    seed: int = Field(default=0, ge=0)
    """Of batches, views and random texts: all are functions of (seed, step, sample)."""
    precision: PrecisionName = "auto"
    """Of the encoders' forward pass; `auto` is bfloat16 autocast on GPUs that have it."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several workers of a trial hold: each the whole model, or (`fsdp`) each a part of it."""
    activation_checkpointing: bool = False
    """Compute a block's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """`torch.compile` the encoders."""

    @model_validator(mode="before")
    @classmethod
    def _plugins_are_loaded(cls, values: Any) -> Any:
        """Import the plug-ins before `method` is validated against the registered methods."""
        given = values.get("plugins", ()) if isinstance(values, Mapping) else ()
        if not isinstance(given, list | tuple) or not all(isinstance(m, str) for m in given):
            return values  # refused by the field's own validation
        plugins = [
            str(Path(module).expanduser().absolute()) if module.endswith(".py") else module
            for module in given
        ]
        load_plugins(plugins)
        return {**values, "plugins": tuple(plugins)} if plugins else values

    @model_validator(mode="after")
    def _method_can_be_sharded(self) -> TrialConfig:
        if self.parallel == "fsdp" and not self.method.shardable:
            raise ValueError(
                f"parallel = 'fsdp': method.name = {self.method.name!r} needs whole weights on "
                "every worker; write parallel = 'ddp'"
            )
        return self


def with_overrides(config: TrialConfig, overrides: Mapping[str, Any], source: str) -> TrialConfig:
    """`config` with dotted keys laid over it, validated again as a whole.

    Another `method.name` leaves none of the settings of the method before.

    Args:
        config: the base.
        overrides: such as ``{"optim.lr": 1e-4, "method.reg_weight": 0.3}``.
        source: named in the error message, e.g. the file or `--set`.

    Raises:
        ConfigError: an unknown key or a value out of its range.
    """
    return validate(TrialConfig, over_trial(overrides, config.model_dump(mode="json")), source)
