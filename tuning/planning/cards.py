"""What a search needs on GPUs that are not at hand: `lipsum-tune plan CONFIG --on A100-80GB,L4`.

A step of the base trial is taken on fake tensors (`fake_step`). A kernel takes as long as its
operations at the card's peak or as its bytes at the card's bandwidth, whichever is longer, divided
by `EFFICIENCY`. All figures are predictions: no GPU is asked. As in `plan`, references and all
proposals are priced like the base trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from trainers.config import TrialConfig, with_overrides
from trainers.data.roots import image_counts
from trainers.errors import ConfigError, first_line, suggestion
from trainers.loop.fake_step import (
    Operation,
    StepCost,
    evaluation_cost,
    fitting_micro_batch,
    step_cost,
)
from trainers.loop.images import id_classes
from tuning.config.schema import SearchFile
from tuning.planning.plan import Plan, budget_line, rung_share, test_images
from tuning.views.formatting import format_hours
from tuning.views.result_table import borderless_table

EFFICIENCY = 0.8
"""Share of a card's peak that kernels reach, from published training speeds: docs/results.md."""
IMAGES_A_CORE = 500
"""JPEGs of 500 x 375 pixels that a CPU core decodes and crops in a second."""
SMALLER_IMAGES = 1.9
"""How many times as many if `prepare --resize 256` wrote them: docs/concepts.md."""
VALIDATION = 1 / 7
"""Validation images of each domain by training images, as `prepare` splits by default."""


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: dense operations, with sums in float32."""

    memory_gb: float
    bandwidth_gb_s: float
    fp32_tflops: float
    half_tflops: float
    """Of float16, and of bfloat16 if the card has it."""
    tf32_tflops: float | None = None
    """None for cards before Ampere, which have no bfloat16 either."""

    def precision(self, trial: TrialConfig) -> str:
        """The number format of the encoders: `auto` is bfloat16 where the card has it."""
        if trial.precision != "auto":
            return trial.precision
        return "fp32" if self.tf32_tflops is None else "bf16"

    def seconds(
        self, operations: Iterable[Operation], precision: str, *, shared: bool = True
    ) -> float:
        """Predicted time of kernels one after the other.

        Args:
            precision: that of the encoders; only `tf32` is not known from the operations.
            shared: also of those that only the first trial needs.
        """
        fp32 = self.tf32_tflops or self.fp32_tflops if precision == "tf32" else self.fp32_tflops
        peaks = {torch.float32: fp32, torch.float64: self.fp32_tflops / 2}
        return (
            sum(
                max(
                    op.flops / (1e12 * peaks.get(op.dtype, self.half_tflops)),
                    op.moved / (1e9 * self.bandwidth_gb_s),
                )
                for op in operations
                if shared or not op.shared
            )
            / EFFICIENCY
        )

    def step_s(self, step: StepCost, precision: str, *, shared: bool = True) -> float:
        """Predicted time of a step; the arguments are those of `seconds`."""
        of_recorded = self.seconds(step.of_micro_batches, precision, shared=shared)
        of_each = of_recorded / step.recorded
        return step.micro_batches * of_each + self.seconds(step.of_optimizer, precision)


CARDS = {
    "T4": Card(16, 320, 8.1, 65),
    "V100-16GB": Card(16, 900, 15.7, 125),
    "V100-32GB": Card(32, 900, 15.7, 125),
    "RTX-3090": Card(24, 936, 35.6, 71, 35.6),
    "RTX-4090": Card(24, 1008, 82.6, 165, 82.6),
    "L4": Card(24, 300, 30.3, 121, 60),
    "L40S": Card(48, 864, 91.6, 362, 183),
    "A100-40GB": Card(40, 1555, 19.5, 312, 156),
    "A100-80GB": Card(80, 2039, 19.5, 312, 156),
    "H100": Card(80, 3350, 67, 989, 494),
    "H200": Card(141, 4800, 67, 989, 494),
}
"""By the names of `--on`. H100 and H200 are those with SXM."""


@dataclass(frozen=True)
class DataSize:
    """The images and classes of a trial."""

    classes: int
    validation: Sequence[int]
    """Validation images of each domain, the ID domain first."""
    origin: str
    test_images: float = Plan.test_images
    """Test images by validation images."""


@dataclass(frozen=True)
class CardPlan:
    """The predictions for one card."""

    name: str
    step: StepCost | None
    """None if single images do not fit."""
    micro_batch: int
    """Images at once: the configured number, or halved until they fit."""
    precision: str
    cores: int
    """CPU cores that decode the images of a GPU."""
    plan: Plan
    """Of trials that read zero-shot features which the first one has stored, if they can."""

    @property
    def gpu_hours(self) -> dict[str, float]:
        """Of a trial, of all trials in full with the references, and of `confirm`."""
        gpus = self.plan.file.search.resources.gpus_per_trial
        return {
            "trial": gpus * self.plan.full_s / 3600,
            "search": self.plan.prices[0].device_hours,
            "confirm": self.plan.confirm_price.device_hours,
        }


def plan_on(
    file: SearchFile, cards: Sequence[str], *, images: int | None = None, classes: int | None = None
) -> tuple[DataSize, list[CardPlan]]:
    """Predict memory and hours of a search on some cards; neither weights nor images are read.

    Args:
        cards: names in `CARDS`.
        images: training images, if the data are not in a folder of this machine; 128,000.
        classes: of the ID domain, likewise; 1,000.
    """
    cards = [known_card(name) for name in cards]
    data, resources = data_size(file.trial, images, classes), file.search.resources
    workers = resources.workers
    share = {"optim.batch_size": file.trial.optim.share(workers)}
    trial = with_overrides(file.trial, share, "trial")
    gpus = {"gpus_per_worker": resources.gpus_per_worker or 1}
    search = file.search.model_copy(update={"resources": resources.model_copy(update=gpus)})
    on_gpus = file.model_copy(update={"search": search})

    @cache
    def cost(precision: str, micro_batch: int) -> StepCost:
        own = {"precision": precision, "optim.micro_batch_size": micro_batch}
        try:
            return step_cost(with_overrides(trial, own, "trial"), classes=data.classes)
        except RuntimeError as error:  # an operation that fake tensors do not have
            problem = f"no step on fake tensors: {first_line(error)}"
            name = trial.method.name
            raise ConfigError(problem, key="trial.method.name", value=name) from error

    @cache
    def evaluation(precision: str) -> tuple[list[Operation], list[Operation]]:
        own = with_overrides(trial, {"precision": precision}, "trial")
        return evaluation_cost(own, classes=data.classes)

    batch = trial.optim.batch_size
    # Kernels are predicted to fill a GPU, so trials that share one share its speed, too.
    share_of_gpu = min(1.0, resources.gpus_per_worker or 1.0)
    found = []
    for name in cards:
        card = CARDS[name]
        used = card.precision(trial)
        precision = {"fp16": "bf16", "tf32": "fp32"}.get(used, used)  # whose tensors are as large
        begin = trial.optim.micro_batch_of(batch)
        memory = 1e9 * card.memory_gb * share_of_gpu
        micro_batch, step = fitting_micro_batch(partial(cost, precision), begin, memory)
        if step is None:
            unknown = Plan(on_gpus, 1, *6 * [math.nan])
            found.append(CardPlan(name, None, 0, used, 0, unknown))
            continue
        stored_gb = 2e-9 * file.trial.steps * batch * workers * step.width  # in float16
        shared = stored_gb > file.trial.zero_shot_cache_gb
        step_s = card.step_s(step, used, shared=shared) / share_of_gpu
        of_images, of_texts = (
            card.seconds(operations, used) / share_of_gpu for operations in evaluation(precision)
        )
        rung_s, eval_s = _evaluation_s(trial, data, of_images / trial.eval.batch_size, of_texts)
        cores = math.ceil(batch / step_s / IMAGES_A_CORE)
        durations = (0, 0, step_s, 0, rung_s / workers, eval_s / workers)
        plan = Plan(on_gpus, 1, *durations, data.test_images, rung_share(trial, data.validation))
        found.append(CardPlan(name, step, micro_batch, used, cores, plan))
    return data, found


def known_card(name: str) -> str:
    """The card of a name in any case, with the most memory if the name leaves it out (`a100`)."""
    alike = [card for card in CARDS if f"{card}-".upper().startswith(f"{name}-".upper())]
    if not alike:
        problem, hint = f"not one of {', '.join(CARDS)}", suggestion(name, CARDS)
        raise ConfigError(problem, key="--on", value=name, hint=hint)
    return alike[-1]


def data_size(trial: TrialConfig, images: int | None, classes: int | None) -> DataSize:
    """From the prepared data in a folder, or else as given or assumed."""
    data, root = trial.data, trial.data.root
    if images is None and classes is None and Path(root).is_dir():
        val = list(image_counts(data, "val").values())
        return DataSize(len(id_classes(data)), val, f"{root}", test_images(data))
    rules = data.rules
    number = classes or (1000 if isinstance(rules.class_names, str) else len(rules.class_names))
    images = images or 128_000
    val = [round(images * VALIDATION)] * len(data.domains)
    return DataSize(number, val, f"{images:,} training images, {number:,} classes")


def _evaluation_s(
    trial: TrialConfig, data: DataSize, image_s: float, texts_s: float
) -> tuple[float, float]:
    """Seconds of an evaluation before the last step, and of that after it with the line."""
    evaluation = trial.eval
    prompts = data.classes * len(trial.data.rules.all_templates)
    head_s = texts_s * prompts / evaluation.batch_size

    def of(images: int) -> float:
        return image_s * sum(min(images or n, n) for n in data.validation)

    points = len({*evaluation.line_points, 1.0}) if evaluation.line_points else 0
    points *= trial.method.has_line
    on_line = points * (of(evaluation.line_images) + head_s)
    return of(evaluation.rung_images) + head_s, of(0) + head_s + on_line


def render(file: SearchFile, data: DataSize, plans: Sequence[CardPlan]) -> RenderableType:
    """The predictions as a table."""
    trial, trials = file.trial, file.most_trials
    table = borderless_table(
        "card", "GB", "images", "s/step", "cores", "trial, h", "search, h", "confirm, h",
    )  # fmt: skip
    for found in plans:
        if found.step is None:
            table.add_row(found.name, "too small", *6 * [""])
            continue
        table.add_row(
            found.name,
            f"{found.step.peak_bytes / 1e9:.1f}",
            str(found.micro_batch),
            f"{found.plan.step_s:.2g} ({found.precision})",
            str(found.cores),
            *map(format_hours, found.gpu_hours.values()),
        )
    what = (
        f"{file.search.name}: {trials} trials of {trial.steps} steps of {trial.optim.batch_size} "
        f"images, {trial.method.name} of {trial.model.name}; {data.origin}"
    )
    limit = (
        f"Predicted on {date.today()}, not measured: GB of tensors at the peak of a step, without "
        "CUDA's own memory; images of a batch that fit at once; CPU cores that decode its images; "
        f"GPU-hours with kernels at {EFFICIENCY:.0%} of the card's data sheet."
    )
    lines = [Text(limit)]
    ends = (budget_line(found.plan, found.name) for found in plans if found.step is not None)
    lines += [Text(line) for line in ends if line]
    has = file.search.resources.cpus_per_worker
    if short := [found for found in plans if found.cores > has]:
        fewer = (f"{f.name} {math.ceil(f.cores / SMALLER_IMAGES)}" for f in short)
        advice = (
            f"search.resources.cpus_per_worker is {has}, less than the cores that some cards need. "
            "Raise it and trial.data.workers, or prepare the images with `--resize 256`, "
            f"which need fewer: {', '.join(fewer)}."
        )
        lines.append(Text(advice))
    return Group(Text(what), "", table, "", *lines)
