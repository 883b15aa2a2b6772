"""The zero-shot row of a table alone: what the model does before any step, beside what is known.

It checks class names, templates, masks and preprocessing from end to end before anything is
trained. Nothing is chosen by it, so it may look at the test splits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from trainers.checks import check_data
from trainers.config import TrialConfig
from trainers.data.class_map import domain_class_map
from trainers.errors import ConfigError, did_you_mean
from trainers.evaluation.evaluate import evaluate
from trainers.loop.precision import Precision
from trainers.loop.state import id_classes, open_images
from trainers.models import check_model
from trainers.models.zero_shot import load_zero_shot

PUBLISHED = "published"
Z_95 = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""
ROUNDING = 0.05
"""Points by which a figure with one decimal may be off."""


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

    @property
    def error(self) -> float:
        """Half the 95 % interval of `acc` for so many images (binomial), in points."""
        return sampling_error(self.acc, self.images)

    @property
    def difference(self) -> float | None:
        """Measured less expected, in points."""
        return None if self.expected is None else self.acc - self.expected

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is no more than sampling and rounding make; None: not known."""
        if self.expected is None:
            return None
        allowed = sampling_error(self.expected, self.images) + ROUNDING
        return abs(self.acc - self.expected) <= allowed


def sampling_error(acc: float, images: int) -> float:
    """Half the 95 % interval of an accuracy in percent that `images` images give, in points."""
    share = min(max(acc / 100, 0.0), 1.0)
    return 100 * Z_95 * math.sqrt(share * (1 - share) / images)


def check_zero_shot(
    config: TrialConfig,
    split: str,
    domains: Sequence[str] = (),
    expected: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """The domains that will be evaluated, all of the configuration's by default.

    Raises:
        ConfigError: one that the configuration has not, without that split, or that does not fit;
            or something is expected, and of none of them.
    """
    known = config.data.domains
    for domain in domains:
        if domain not in known:
            raise ConfigError(f"--domains {domain!r}: not configured{did_you_mean(domain, known)}")
    wanted = tuple(domain for domain in known if domain in domains) if domains else known
    if expected is not None and not any(domain in expected for domain in wanted):
        raise ConfigError(
            f"--expect: nothing is expected of {', '.join(wanted)}, so nothing would be compared; "
            f"there are figures of {', '.join(expected) or 'no domain'}"
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
    device: torch.device | str | None = None,
    began: Callable[[str], None] = lambda domain: None,
) -> list[Row]:
    """The rows of the domains, in the configuration's order.

    Args:
        config: of the trial whose model is looked at; method and optimiser do not matter.
        split: `val` or `test`.
        domains: only these.
        expected: accuracy in percent by domain, to be put beside what is measured.
        device: by default a GPU if there is one.
        began: is told of each domain as its turn comes.

    Raises:
        ConfigError: as `check_zero_shot`.
    """
    wanted = check_zero_shot(config, split, domains, expected)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data, precision = config.data, Precision(config.precision, where)
    names = id_classes(data, split)
    zero_shot = load_zero_shot(config.model, data.rules.prompts(names), where)

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        with precision.autocast():
            features = zero_shot.image_features(images)
        return features, zero_shot.logit_scale * features @ zero_shot.head.T

    rows = []
    for domain in wanted:
        began(domain)
        images = open_images(data, domain, split)
        class_map = domain_class_map(data, names, domain, images)
        sums = evaluate(
            classify,
            images,
            zero_shot.image_input,
            batch_size=config.eval.batch_size,
            device=where,
            class_map=class_map,
            workers=data.workers,
        )
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
    """Accuracies in percent by domain, of what `--expect` says.

    Args:
        text: `published` (the suite's row for this model), `real=82.5,sketch=57.0`, or a YAML file
            of the same.
        config: of the trial.

    Raises:
        ConfigError: no published row, no such file or domain, or no percentage.
    """
    if text == PUBLISHED:
        return _published(config)
    if "=" in text and not Path(text).is_file():
        values: object = dict(_pair(part) for part in text.split(","))
    else:
        values = _read(Path(text).expanduser())
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"--expect {text}: expected accuracies by domain, such as `real: 82.5`")
    for domain, acc in values.items():
        if domain not in config.data.domains:
            raise ConfigError(
                f"--expect {text}: no domain is called {domain!r}"
                f"{did_you_mean(str(domain), config.data.domains)}"
            )
        if isinstance(acc, bool) or not isinstance(acc, int | float) or not 0 <= acc <= 100:
            raise ConfigError(f"--expect {text}: {domain} = {acc!r}: expected a percentage")
    return {domain: float(acc) for domain, acc in values.items()}


def _published(config: TrialConfig) -> dict[str, float]:
    model, rules = config.model, config.data.rules
    key = f"{model.name}/{model.pretrained}"
    if key not in rules.published:
        raise ConfigError(
            f"--expect {PUBLISHED}: the suite {rules.name!r} has no published figures of {key!r}"
            f"{did_you_mean(key, rules.published)}"
        )
    return dict(rules.published[key])


def _pair(part: str) -> tuple[str, object]:
    domain, _, acc = part.partition("=")
    try:
        return domain.strip(), float(acc)
    except ValueError:
        return domain.strip(), acc


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--expect {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--expect {path}: {' '.join(str(error).split())}") from None
