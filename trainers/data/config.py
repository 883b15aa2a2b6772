"""The `data` section of the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from trainers.config_model import Frozen
from trainers.data.store import EMBEDDED, cache_folder
from trainers.data.suite import Suite, is_domain_name, load_suite, resolve_suite
from trainers.errors import ConfigError

MOST_LOADERS = 16
"""Limit of `data.workers: auto`; a process decodes some hundred images a second."""

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

    root: str = EMBEDDED
    """Folder or URL (`s3://bucket/data`) with `<domain>/<split>/*.parquet`; `openmoji` is the
    built-in benchmark."""
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
    open_clip's own transform shows it."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1000)] = "auto"
    """Processes of each training worker that decode images; 0 decodes in the worker itself. `auto`
    is one for each of the worker's CPUs if it trains on a GPU, else 0."""

    decoded_gb: float = Field(default=5, ge=0, le=1e6)
    """Limit of the decoded evaluation images that each machine keeps for all trials (10^9 bytes),
    of which a split may take half of the free disk; 150 kB an image of 224 pixels. A split that
    does not fit is decoded at each evaluation."""
    cache_dir: str | None = None
    """Folder of each machine for decoded images and features of the zero-shot model, best on a disk
    of its own; by default the cache of `datasets`, see `HF_DATASETS_CACHE`."""

    @field_validator("workers", mode="before")
    @classmethod
    def _workers_are_counted(cls, workers: Any) -> Any:
        if workers != "auto" and not (type(workers) is int and 0 <= workers <= 1000):
            raise ValueError("expected auto, or a number from 0 to 1000")
        return workers

    @field_validator("cache_dir")
    @classmethod
    def _cache_dir_is_absolute(cls, folder: str | None) -> str | None:
        return None if folder is None else str(Path(folder).expanduser().absolute())

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, root: str) -> str:
        """Workers and resumed runs may have another working directory."""
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
        if not on_gpu:
            return 0
        if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's, whose processes have one thread each
            cores = len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])
        else:  # Ray sets the number of threads to that of the worker's CPUs
            import torch

            cores = torch.get_num_threads()
        return max(1, min(MOST_LOADERS, cores))

    @property
    def cache_path(self) -> Path:
        """Folder of this machine for what `cache_dir` says."""
        return cache_folder() if self.cache_dir is None else Path(self.cache_dir)

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
