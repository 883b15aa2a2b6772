"""The configuration of one fine-tuning, `TrialConfig`, validated before anything starts.

It is immutable, independent of searching, and complete: two runs with equal configurations give
equal metrics on CPUs (GPUs add up in any order). Keys on the command line, in search spaces and in
MLflow are the dotted paths of these fields, such as ``optim.lr``. The fields of models and methods
are defined beside their code.
"""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from trainers.config_model import Frozen
from trainers.data.data_root import EMBEDDED, domain_files, resolve_root
from trainers.data.schema import read_headers
from trainers.data.sources import Source
from trainers.data.suite import Suite, is_domain_name, load_suite, resolve_suite
from trainers.errors import ConfigError, suggestion, validate
from trainers.evaluation.line import POINTS, LineGoal
from trainers.evaluation.metrics import metric_names
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.methods.registry import METHODS, MethodConfig, is_available, load_plugins
from trainers.models.config import ModelConfig
from trainers.overrides import METHOD_KEY, nest

logger = logging.getLogger(__name__)
say_once = cache(logger.warning)

MOST_LOADERS = 16
"""Limit of `data.workers: auto`; a process decodes some hundred images a second."""

SHARED_MEMORY = "/dev/shm"
"""Where loader processes put batches on Linux. A container has 64 MB of it by default."""
MORE_SHARED_MEMORY = "start the container with --shm-size=8g, or lower the number of processes"


PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Strength: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class RandAugment(Frozen):
    """RandAugment (arXiv 1909.13719)."""

    num_ops: int = Field(default=0, ge=0, le=14)
    """Operations on each image, such as a rotation or a change of contrast; usually 2, 0 is off."""
    magnitude: int = Field(default=9, ge=0, le=30)
    """Their strength."""


class ColorJitter(Frozen):
    """Random changes of colours; 0 changes nothing."""

    brightness: Strength = 0
    """Largest relative change of brightness."""
    contrast: Strength = 0
    """Largest relative change of contrast."""
    saturation: Strength = 0
    """Largest relative change of saturation."""
    hue: float = Field(default=0, ge=0, le=0.5)
    """Largest change of the hue, as a share of the circle of colours."""


class RandomErasing(Frozen):
    """Random erasing (arXiv 1708.04896)."""

    p: Strength = 0
    """Probability that a rectangle of a view is erased."""
    scale: tuple[Strength, Strength] = (0.02, 0.33)
    """Smallest and largest share of the area that is erased."""


class Augment(Frozen):
    """Augmentations of training views after crop and flip, those of torchvision, in this order."""

    rand_augment: RandAugment = RandAugment()
    """Random operations on geometry and colours."""
    color_jitter: ColorJitter = ColorJitter()
    """Random changes of colours."""
    random_erasing: RandomErasing = RandomErasing()
    """A rectangle of some views is erased."""


class DataConfig(Frozen):
    """Where the images are, and which domain is in-distribution (ID)."""

    root: str | dict[str, Source] = EMBEDDED
    """Folder or URL (`s3://bucket/data`) with `<domain>/<split>/*.parquet`; `openmoji` is the
    embedded benchmark. Or the source of each domain, the ID domain first, which each machine
    prepares once in its cache: `studio: {path: /data/studio}`, `photo: {layout: hub, path:
    owner/name, revision: main, domain_column: domain}`."""
    suite: Annotated[str | Suite | None, BeforeValidator(resolve_suite)] = None
    """Name of a packaged suite, or your own as a YAML file or its keys, which become part of the
    configuration. It has the domains, unless the next two keys are given, and the class names in
    prompts; without a suite these are the folder names with spaces for underscores."""
    id_domain: str = "real"
    """The domain whose train split is used for fine-tuning."""
    ood_domains: tuple[str, ...] = ("painting", "clipart", "infograph", "sketch")
    """Domains that are only evaluated: the distribution shifts."""
    crop_area: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of an image's area that a random training crop covers."""
    crop_law: Literal["torchvision", "tensorflow"] = "torchvision"
    """How random crops are distributed: as torchvision's `RandomResizedCrop`, or as TensorFlow's
    `sample_distorted_bounding_box`, which the authors of Lipsum-FT used: 5 to 14 % less area,
    depending on the shape of the image, and never less than a tenth of it."""
    flip: bool = True
    """Mirror every second training crop, at random."""
    augment: Augment = Augment()
    """Further changes of training crops, none by default; each a function of (seed, step, sample)
    as the crop is."""
    crop_pct: float = Field(default=1, gt=0, le=1)
    """Share of the short side that the evaluation's center crop keeps; 1 is the whole side, as
    open_clip's own transform shows it. Data that name a share of their own keep that."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1000)] = "auto"
    """Processes of each training worker that decode images; 0 decodes in the worker itself. `auto`
    is one for each of the worker's CPUs if it trains on a GPU, else 0."""

    @field_validator("workers", mode="before")
    @classmethod
    def _workers_are_counted(cls, workers: Any) -> Any:
        if workers != "auto" and not (type(workers) is int and 0 <= workers <= 1000):
            raise ValueError("expected auto, or a number from 0 to 1000")
        return workers

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str | dict[str, Source]) -> str | dict[str, Source]:
        """Workers and resumed runs may have another working directory."""
        if isinstance(root, dict):
            if not root:
                raise ValueError("expected the source of each domain")
            return {name: source.absolute() for name, source in root.items()}
        if root == EMBEDDED or "://" in root:
            return root
        return str(Path(root).expanduser().absolute())

    @model_validator(mode="before")
    @classmethod
    def _suite_names_the_domains(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        try:
            suite = resolve_suite(values.get("suite"))
        except ConfigError:
            return values  # reported by the field's own validation
        if suite is None:
            if isinstance(root := values.get("root"), Mapping) and root:
                first, *rest = root
                return {"id_domain": first, "ood_domains": rest, **values}
            return values
        rules = load_suite(suite) if isinstance(suite, str) else suite
        filled = {"id_domain": rules.id_domain, **values, "suite": suite}
        domains = rules.ood_domains
        if filled["id_domain"] in domains:  # one of the shifts is used for fine-tuning
            domains = (rules.id_domain, *domains)
        others = tuple(name for name in domains if name != filled["id_domain"])
        return {"ood_domains": others, **filled}

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        names = [self.id_domain, *self.ood_domains]
        for name in names:
            if not is_domain_name(name):
                raise ValueError(f"the domain {name!r} is not the name of a folder")
        if isinstance(self.root, dict) and next(iter(self.root)) != self.id_domain:
            raise ValueError(f"the first source of root is not that of {self.id_domain!r}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the domain {twice[0]!r} is named twice in id_domain and ood_domains")
        if self.crop_law == "tensorflow" and self.crop_area[1] <= 0.1:
            raise ValueError("crop_law: tensorflow draws crops of more than 0.1 of the image only")
        return self

    @field_validator("crop_area")
    @classmethod
    def _area_is_a_range(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError("expected two shares, 0 < least <= greatest <= 1")
        return area

    def loader_processes(self, *, on_gpu: bool) -> int:
        """Processes that decode the images of this worker, see `workers`."""
        if self.workers != "auto":
            return self.workers
        import torch

        # Ray sets the number of threads to that of the worker's CPUs.
        return min(MOST_LOADERS, torch.get_num_threads()) if on_gpu else 0

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains, the ID domain first."""
        return (self.id_domain, *self.ood_domains)

    @property
    def trial_parts(self) -> list[tuple[str, str]]:
        """Domain and split of the parts that a trial reads: never a test split."""
        return [(self.id_domain, "train"), *((domain, "val") for domain in self.domains)]

    @property
    def rules(self) -> Suite:
        """The suite; without one, a suite that takes class names from folder names."""
        if isinstance(self.suite, str):
            return load_suite(self.suite)
        return self.suite or Suite(
            name="none", id_domain=self.id_domain, ood_domains=self.ood_domains
        )


Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Frozen):
    """AdamW with linear warm-up and cosine decay to 0."""

    lr: float = Field(default=1e-5, gt=0, le=1000)
    """Peak learning rate."""
    head_lr_factor: float = Field(default=1, gt=0, le=1e6)
    """Learning rate of a trained head as a multiple of `lr`. Its weight decay is divided by it, so
    that the head decays as fast at any factor. At 0.01 the head trains as that of WiSE-FT's code,
    which contains CLIP's scale of 100. The first stage of LP-FT does not use it."""
    layer_decay: Share = 1
    """Learning rate of a layer of an encoder as a multiple of that of the next one above: the last
    block trains at `layer_decay` times the rate of the output projection, the embedding at the
    lowest rate. Weight decay falls with it, as in timm."""
    text_lr_factor: float = Field(default=1, ge=0, le=1e6)
    """Learning rate of a text encoder that trains, and of the logit scale, as a multiple of `lr`;
    0 keeps them as they are."""
    frozen_layers: int = Field(default=0, ge=0, le=1000)
    """Layers of the image encoder, from below, that do not train: 1 is the embedding of patches, 2
    also the first block, and so on."""
    batch_size: int = Field(default=256, ge=1, le=10**6)
    """Images of a step over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=10**6)
    """Images that go through a worker's model at once. A step then has several parts, with the
    same gradient. null is a worker's whole share. It is halved if GPU memory runs out: by a worker
    that is alone on the spot, by several in a new attempt from the last checkpoint."""
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


class EvalConfig(Frozen):
    """When and how the validation splits are evaluated."""

    every: int = Field(default=1000, ge=1, le=10**9)
    """Steps between evaluations; the last step is always evaluated."""
    rung_images: int = Field(default=2000, ge=0, le=10**9)
    """Images of each domain that are evaluated before the last step: a stratified sample, the same
    one for all trials and seeds. The standard error of an accuracy on n images is at most
    50 / sqrt(n) points, which is 1.1 for 2000. 0 evaluates all images, as the last step does."""
    line_images: int = Field(default=2000, ge=0, le=10**9)
    """Images of each domain on which the points of `line` are measured, sampled as those of
    `rung_images`: they decide which weights a trial keeps. 0 is all images."""
    rung_weights: Literal["raw", "averaged"] = "raw"
    """Weights that are evaluated before the last step: those that are being trained, or their
    running average, which ranks trials early more like the last step does. It needs memory for one
    more copy of the trained weights, and two more in checkpoints. The last step evaluates the
    trained ones."""
    batch_size: int = Field(default=256, ge=1, le=10**6)
    """Images of a forward pass."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """d of the moving average ``average <- d average + (1 - d) weights`` after every step, which
    starts at the zero-shot weights and is evaluated, saved and exported in place of the trained
    ones; null for none. The method `ema` is `ft` with it, and `r_adapter` has one of its own."""
    line: Literal["auto", "off"] | Share | tuple[Share, ...] = "auto"
    """Point of the line from the zero-shot weights (0) to the trained ones (1) that a trial
    evaluates and keeps after its last step (WiSE-FT). `auto` measures three points and the end on
    `line_images` images, and takes the best point by the search's objective and constraints; a list
    names other points to measure. A number is a fixed point; `off` is the end. The methods
    `wise_ft` and `r_adapter` have an `alpha` of their own and no line."""
    line_goal: LineGoal | None = None
    """What the point is chosen by, which a search sets from its objectives and constraints. null is
    the highest `val/mean_acc`, or `id_val/acc` without OOD domains."""

    @field_validator("line", mode="before")
    @classmethod
    def _is_on_the_line(cls, line: Any) -> Any:
        if line in ("auto", "off"):
            return line
        points = line if isinstance(line, list | tuple) and line else [line]
        if not all(type(a) in (int, float) and 0 < a <= 1 for a in points):
            raise ValueError(
                "expected auto, off, a number above 0 and at most 1, or a list of these"
            )
        names = [f"{a:g}" for a in points]  # as in metric names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice")
        return line

    @model_validator(mode="before")
    @classmethod
    def _line_may_be_off_in_yaml(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        # YAML reads `off` as false.
        return {**values, "line": "off"} if values.get("line") is False else values

    @property
    def line_points(self) -> tuple[float, ...]:
        """The points that are measured beside both ends; empty if none is chosen."""
        if isinstance(self.line, str):
            return POINTS if self.line == "auto" else ()
        return self.line if isinstance(self.line, tuple) else ()


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
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of batches, image views and random texts: all are functions of (seed, step, sample)."""
    precision: PrecisionName = "auto"
    """Precision of the encoders' forward pass; `auto` is bfloat16 autocast on GPUs that have it."""
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
            return self
        if "steps" in self.model_fields_set:
            raise ValueError("epochs: steps is given, too; leave one of them out")
        data, batch_size = self.data, self.optim.batch_size
        store = resolve_root(data.root)
        files = domain_files(store, data.id_domain, "train")
        images = sum(header.rows for header in read_headers(store, files))
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
            raise ConfigError(
                f"it is registered by {type(self.method).__module__}, which workers do not import",
                key="method.name",
                value=name,
                hint="name its file or module under `plugins`",
            )
        if self.eval.ema is not None and self.method.ema is not None:
            problem = f"eval.ema: method.name = {name!r} has a moving average of its own"
            raise ValueError(problem)
        known = metric_names(self.data)
        for metric in self.eval.line_goal.metrics if self.eval.line_goal else ():
            if metric not in known:
                problem, hint = "is no metric of the validation splits", suggestion(metric, known)
                raise ConfigError(problem, key="eval.line_goal", value=metric, hint=hint)
        return self


def with_overrides(config: TrialConfig, overrides: Mapping[str, Any], source: str) -> TrialConfig:
    """The configuration with other values for dotted keys, validated again as a whole.

    Another `method.name` drops all settings of the method before.

    Args:
        overrides: such as ``{"optim.lr": 1e-4, "method.reg_weight": 0.3}``.
        source: for the error message, such as the file or `--set`.

    Raises:
        ConfigError: unknown key, or a value out of its range.
    """
    trial = config.model_dump(mode="json")
    if overrides.get(METHOD_KEY, config.method.name) != config.method.name:
        del trial["method"]
    return validate(TrialConfig, nest(overrides, trial), source)
