"""Evaluation of the zero-shot model on its own, compared with published accuracies.

It checks class names, templates, masks and preprocessing end to end before any training. It selects
nothing, so it may read the test splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from trainers.checks import check_data
from trainers.config import TrialConfig
from trainers.data.class_map import domain_class_map
from trainers.errors import ConfigError, listed
from trainers.evaluation.evaluate import EvalBatches, measure_domain
from trainers.loop.images import id_classes, open_images
from trainers.loop.precision import Precision
from trainers.models.zero_shot import ZeroShotModel, load_zero_shot
from tuning.results.ranking import accuracy_margin
from tuning.views.formatting import near_chance
from tuning.views.result_table import Cell, ResultTable, fit_table

ROUNDING = 0.05
"""Rounding error of an accuracy with one decimal, in points."""

_CAUSES = """\
Off by more than sampling (95 %) and rounding allow: {domains}. Usual causes:
- all domains a few points low: class names or templates (trial.data.suite), an activation that does
  not belong to the weights (ViT-B-16-quickgelu for `openai`), or preprocessing
  (trial.data.crop_pct, small or cropped images)
- one domain far off: its order of classes (DomainNet's lists, ImageNet-V2's numbered folders), a
  mask of other classes (-R, -A), or a class_map
- one or two points: other images than those of the published accuracy (images split off for
  validation, --split), or another crop"""


@dataclass(frozen=True)
class Row:
    """One domain; accuracies and calibration error in percent."""

    domain: str
    images: int
    classes: int
    acc: float
    nll: float
    ece: float
    expected: float | None = None
    """Accuracy to compare with; None if unknown."""

    @property
    def agrees(self) -> bool | None:
        """Whether sampling and rounding explain the difference; None if nothing is expected."""
        if self.expected is None:
            return None
        allowed = accuracy_margin(self.expected, self.images) + ROUNDING
        return abs(self.acc - self.expected) <= allowed


def measure(
    config: TrialConfig,
    split: str,
    *,
    expected: Mapping[str, float] | None = None,
    began: Callable[[str], None] = lambda domain: None,
) -> list[Row]:
    """Evaluate the domains of a configuration, the ID domain first.

    `expected` has accuracies in percent to compare with. `began` is called with each domain before
    it is evaluated.
    """
    data = config.data
    check_data(data, [(domain, split) for domain in data.domains])
    names = id_classes(data, split)
    zero_shot, encode, batches = open_model(config, names)

    def classify(images: Tensor) -> Tensor:
        return zero_shot.logits(encode(images))

    rows = []
    for domain in data.domains:
        began(domain)
        images = open_images(data, domain, split)
        class_map = domain_class_map(data, names, domain, images.class_names)
        number, (found,) = measure_domain([classify], images, batches, class_map=class_map)
        measures = {name: found[name] for name in ("acc", "nll", "ece")}
        of_domain = (expected or {}).get(domain)
        rows.append(Row(domain, number, class_map.num_classes, **measures, expected=of_domain))
    return rows


def open_model(
    config: TrialConfig, class_names: Sequence[str]
) -> tuple[ZeroShotModel, Callable[[Tensor], Tensor], EvalBatches]:
    """The zero-shot model on a GPU if there is one, its L2-normalised features, and its batches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = Precision(config.precision, device)
    zero_shot = load_zero_shot(config.model, config.data.rules.prompts(class_names), device)

    def encode(images: Tensor) -> Tensor:
        with precision.autocast():
            return zero_shot.image_features(images)

    workers = config.data.loader_processes(on_gpu=device.type == "cuda")
    batches = EvalBatches(zero_shot.image_input, config.eval.batch_size, device, workers)
    return zero_shot, encode, batches


def published(config: TrialConfig) -> dict[str, float]:
    """Published accuracies in percent of the model on the suite, by domain."""
    model = config.model
    suite = config.data.rules
    domains = config.data.domains
    name = f"{model.name}/{model.pretrained}"
    found = suite.published.get(name, {})
    if found.keys().isdisjoint(domains):
        problem = f"the suite {suite.name!r} has no published accuracies of {name!r} on its domains"
        hint = f"known: {listed(found or suite.published)}"
        raise ConfigError(problem, key="--expect", value="published", hint=hint)
    return found


def zero_shot_table(rows: Sequence[Row], *, title: str, id_domain: str) -> Table:
    """One row per domain, then the mean over the OOD domains.

    With expected accuracies, they replace NLL and ECE, so that the table fits 80 columns.
    """
    compared = any(row.expected is not None for row in rows)
    others = ["expected", "off by", ""] if compared else ["NLL", "ECE, %"]
    columns = ["", "images", "classes", "acc, %", *others]
    lines: list[list[Cell]] = []
    for row in rows:
        name = f"{row.domain} (ID)" if row.domain == id_domain else row.domain
        acc = f"{row.acc:.2f} ± {accuracy_margin(row.acc, row.images):.2f}"
        lines.append([name, f"{row.images:,}", f"{row.classes:,}", acc])
        if not compared:
            lines[-1] += [f"{row.nll:.3f}", f"{row.ece:.2f}"]
        elif row.expected is not None:
            agreement = Text("agrees", "green") if row.agrees else Text("off", "bold red")
            lines[-1] += [f"{row.expected:.2f}", f"{row.acc - row.expected:+.2f}", agreement]
    shifts = [row for row in rows if row.domain != id_domain]
    if len(shifts) > 1:
        mean = fmean(row.acc for row in shifts)
        lines.append(["mean OOD", "", "", f"{mean:.2f}"])
        known = [row.expected for row in shifts if row.expected is not None]
        if len(known) == len(shifts):  # means over different domains are not comparable
            lines[-1] += [f"{fmean(known):.2f}", f"{mean - fmean(known):+.2f}"]
    whole = [[*line, *[""] * (len(columns) - len(line))] for line in lines]
    return fit_table(ResultTable(columns, whole, title=title))


def guesses(rows: Sequence[Row]) -> list[str]:
    """A line for each domain whose accuracy may be that of a guess."""
    found = [near_chance(row.domain, row.acc, row.images, row.classes) for row in rows]
    return [line for line in found if line]


def causes(rows: Sequence[Row]) -> str | None:
    """The usual causes of a difference; None if no domain is off."""
    off = [row.domain for row in rows if row.agrees is False]
    return _CAUSES.format(domains=", ".join(off)) if off else None
