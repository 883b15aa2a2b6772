"""Evaluation of the zero-shot model on its own, compared with published accuracies.

It checks class names, templates, masks and preprocessing end to end before any training. It selects
nothing, so it may read the test splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.checks import check_data
from trainers.config import TrialConfig
from trainers.data.class_map import domain_class_map
from trainers.errors import ConfigError, did_you_mean
from trainers.evaluation.evaluate import EvalBatches, evaluate
from trainers.loop.precision import Precision
from trainers.loop.state import id_classes, open_images
from trainers.models.loading import check_model
from trainers.models.zero_shot import load_zero_shot
from trainers.yaml_text import read_yaml
from tuning.views.formatting import accuracy_margin

PUBLISHED = "published"
ROUNDING = 0.05
"""Rounding error of an accuracy with one decimal, in points."""


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
    def error(self) -> float:
        """Half the 95 % interval of `acc`, in points."""
        return accuracy_margin(self.acc, self.images)

    @property
    def difference(self) -> float | None:
        """Measured minus expected accuracy, in points."""
        return None if self.expected is None else self.acc - self.expected

    @property
    def agrees(self) -> bool | None:
        """Whether sampling and rounding explain the difference; None if nothing is expected."""
        if self.expected is None:
            return None
        allowed = accuracy_margin(self.expected, self.images) + ROUNDING
        return abs(self.acc - self.expected) <= allowed


def check_zero_shot(
    config: TrialConfig,
    split: str,
    domains: Sequence[str] = (),
    expected: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """The domains to evaluate, all of the configuration by default.

    Raises:
        ConfigError: a domain that is not configured or lacks the split, data that do not fit, or
            expectations for none of the domains.
    """
    known = config.data.domains
    for domain in domains:
        if domain not in known:
            hint = did_you_mean(domain, known)
            raise ConfigError(f"not configured{hint}", key="--domains", value=domain)
    wanted = tuple(domain for domain in known if domain in domains) if domains else known
    if expected is not None and not any(domain in expected for domain in wanted):
        raise ConfigError(
            f"no expected accuracy for {', '.join(wanted)}",
            key="--expect",
            hint=f"there are accuracies for {', '.join(expected) or 'no domain'}",
        )
    others = tuple(domain for domain in wanted if domain != config.data.id_domain)
    check_data(config.data, [(domain, split) for domain in (config.data.id_domain, *others)])
    check_model(config.model)
    return wanted


def measure(
    config: TrialConfig,
    split: str,
    domains: Sequence[str] = (),
    *,
    expected: Mapping[str, float] | None = None,
    began: Callable[[str], None] = lambda domain: None,
) -> list[Row]:
    """Evaluate the domains in the order of the configuration.

    `expected` has accuracies in percent to compare with. `began` is called with each domain before
    it is evaluated.

    Raises:
        ConfigError: as `check_zero_shot`.
    """
    wanted = check_zero_shot(config, split, domains, expected)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, precision = config.data, Precision(config.precision, where)
    names = id_classes(data, split)
    zero_shot = load_zero_shot(config.model, data.rules.prompts(names), where)

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        with precision.autocast():
            features = zero_shot.image_features(images)
        return features, zero_shot.logit_scale * features @ zero_shot.head.T

    rows, batch_size = [], config.eval.batch_size
    workers = data.loader_processes(on_gpu=where.type == "cuda")
    batches = EvalBatches(zero_shot.image_input, batch_size, where, workers)
    for domain in wanted:
        began(domain)
        images = open_images(data, domain, split)
        class_map = domain_class_map(data, names, domain, images)
        sums = evaluate(classify, images, batches, class_map=class_map)
        measures = sums.measures()
        rows.append(
            Row(
                domain=domain,
                images=sums.number,
                classes=class_map.num_classes,
                acc=measures["acc"],
                nll=measures["nll"],
                ece=measures["ece"],
                expected=(expected or {}).get(domain),
            )
        )
    return rows


def expectations(text: str, config: TrialConfig) -> dict[str, float]:
    """Domain -> accuracy in percent, from the value of `--expect`.

    Args:
        text: `published` (the suite's accuracies of this model), `real=82.5,sketch=57.0`, or a YAML
            file with such pairs.

    Raises:
        ConfigError: no published accuracies, no such file or domain, or not a percentage.
    """
    model, suite, domains = config.model, config.data.rules, config.data.domains
    if text == PUBLISHED:
        name = f"{model.name}/{model.pretrained}"
        if name not in suite.published:
            raise ConfigError(
                f"the suite {suite.name!r} has no published accuracies of {name!r}"
                f"{did_you_mean(name, suite.published)}",
                key="--expect",
                value=text,
            )
        return dict(suite.published[name])
    values: object
    if "=" in text and not Path(text).is_file():
        pairs = (part.partition("=") for part in text.split(","))
        values = {domain.strip(): acc for domain, _, acc in pairs}
    else:
        try:
            values = read_yaml(Path(text).expanduser())
        except ConfigError as error:
            raise ConfigError(error.problem, key="--expect", value=text) from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(
            "expected accuracies by domain, such as `real: 82.5`", key="--expect", value=text
        )
    found: dict[str, float] = {}
    for domain, acc in values.items():
        if domain not in domains:
            hint = did_you_mean(str(domain), domains)
            raise ConfigError(f"no such domain{hint}", key="--expect", value=domain)
        with suppress(ValueError):
            acc = float(acc) if isinstance(acc, str) else acc
        if isinstance(acc, bool) or not isinstance(acc, int | float) or not 0 <= acc <= 100:
            raise ConfigError("expected a percentage", key=f"--expect {domain}", value=acc)
        found[domain] = float(acc)
    return found
