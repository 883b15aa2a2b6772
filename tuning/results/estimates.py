"""What a confirmation has measured of settings, by its journal, `confirm/journal.jsonl`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from scipy.special import ndtri, stdtrit

from trainers.errors import first_line
from trainers.evaluation.metrics import ID, MEAN_ID_OOD, MEAN_OOD, MetricKey
from tuning.log.history import History
from tuning.log.paths import predictions_path
from tuning.log.records import METHOD_KEY, ZERO_SHOT, Reading, TrialRecord, zero_shot_record

if TYPE_CHECKING:
    from tuning.run import Run

logger = logging.getLogger(__name__)

FT = "ft"
"""Id of the reference, plain fine-tuning."""
SPLIT = "test"
END = "line/1/"
"""Prefix of test accuracies at the end of a training."""
CONFIDENCE = 0.95
Key: TypeAlias = tuple[str, int | None]
"""Trial id and seed; the seed of the zero-shot model is None."""
Right: TypeAlias = Mapping[str, np.ndarray]
"""Of each domain, whether its images are classified correctly, as 1 or 0."""
_SEED: Final = "-seed-"
"""Between trial and seed in the name of a training."""
REFERENCE: Final = TrialRecord(FT, -1, "reference", {METHOD_KEY: FT})
"""Plain fine-tuning, which is trained again beside the trials."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval, in the unit of the values.

    All but the mean are NaN for one seed.
    """

    mean: float
    sd: float
    """Sample standard deviation (n - 1 in the denominator)."""
    low: float
    high: float
    covers_seeds: bool = False
    """Whether the interval holds for new seeds."""
    covers_images: bool = False
    """Whether the interval holds for new images."""

    @property
    def covers(self) -> str:
        """What the interval holds for, in words; empty without one."""
        if self.covers_seeds and self.covers_images:
            return "new seeds and new images"
        if self.covers_seeds:
            return "new seeds alone"
        return "new images" if self.covers_images else ""


def estimate(values: Sequence[float], images: Sequence[tuple[float, np.ndarray]] = ()) -> Estimate:
    """Mean, standard deviation and 95 % interval of independent, normal values, at least one.

    With images, the half-width is the root of ``t^2 S + z^2 I``: S is the variance of the mean over
    the seeds, t Student's quantile for it, z that of the normal distribution, and I the variance
    by the choice of the images, `image_variance`.

    Args:
        values: one for each seed.
        images: of each domain, its weight in the values and what `image_variance` takes.
    """
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan, math.nan)
    quantile, sd = (1 + CONFIDENCE) / 2, stdev(values)
    over_seeds = float(stdtrit(len(values) - 1, quantile)) * sd / math.sqrt(len(values))
    over_images = math.sqrt(sum(weight**2 * image_variance(of) for weight, of in images))
    margin = math.hypot(over_seeds, float(ndtri(quantile)) * over_images)
    return Estimate(mean, sd, mean - margin, mean + margin, True, len(images) > 0)


def over_images(mean: float, images: Sequence[tuple[float, np.ndarray]]) -> Estimate:
    """A value of given weights, with its 95 % interval for other images; NaN without images."""
    if not images:
        return Estimate(mean, math.nan, math.nan, math.nan)
    variance = sum(weight**2 * image_variance(of) for weight, of in images)
    margin = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(mean, math.nan, mean - margin, mean + margin, covers_images=True)


def coverage(estimates: Iterable[Estimate]) -> str:
    """` (± for new seeds alone)`, what their intervals hold for; empty without any."""
    held = dict.fromkeys(one.covers for one in estimates if one.covers)
    return f" (± for {', or for '.join(held)})" if held else ""


def image_variance(values: np.ndarray) -> float:
    """Variance of the mean of a (seeds, images) array by the choice of the images.

    By a two-way analysis of variance: the mean of an image over the seeds varies by the image, and
    by what changes from seed to seed on some images only. The variance over the seeds contains this
    interaction already, so it is subtracted. Two images are added, with 1 and -1 (Bonett and Price,
    "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", 2012), because the variance of few different predictions is too small, and 0 of none.

    Args:
        values: in [-1, 1]: right or wrong, or the difference of two models.
    """
    (seeds, images), mean = values.shape, values.mean()
    total = np.square(values).sum() - values.size * mean**2
    by_image = seeds * np.square(values.mean(axis=0) - mean).sum()
    by_seed = images * np.square(values.mean(axis=1) - mean).sum()
    interaction = (total - by_image - by_seed) / max(1, seeds - 1)
    between = max(0.0, by_image - interaction) / max(1, images - 1) / seeds
    return float(between + 2 / (images + 2)) / images


@dataclass(frozen=True)
class Confirmation:
    """The results on the test splits over fresh seeds."""

    run: Run
    seeds: tuple[int, ...]
    configurations: tuple[TrialRecord, ...]
    """`REFERENCE`, then trials with the labels of the rules that chose them."""
    results: Mapping[Key, TrialRecord]
    """All results, including those of earlier calls with other seeds or configurations. The last
    report of each has the metrics of the test splits."""
    failed: Mapping[Key, str]
    """Trainings that failed, with the error in one line; the next call tries them again."""
    readings: Sequence[Reading] = ()
    """See `History`."""
    wanted: int = 0
    """Number of seeds that the last call was asked for."""

    @property
    def zero_shot(self) -> Mapping[str, float]:
        """Finite metrics of the zero-shot model; empty before they are known."""
        result = self.results.get((ZERO_SHOT, None))
        metrics = result.metrics if result else {}
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def values(self, trial_id: str, metric: str) -> dict[int, float]:
        """Seed -> value, for the seeds that have a finite value of the metric.

        The zero-shot model has the same value for each seed.
        """
        constant = self.results.get((trial_id, None))
        results = {seed: self.results.get((trial_id, seed), constant) for seed in self.seeds}
        found = {seed: r.last(metric) for seed, r in results.items() if r}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, trial_id: str, metric: str) -> Estimate | None:
        """The mean over the seeds; None if none has a result."""
        values = self.values(trial_id, metric)
        images = self.images(metric, [*self.right(trial_id, metric).values()])
        return estimate([*values.values()], images) if values else None

    def means(self, trial_id: str) -> dict[str, float]:
        """The mean of each metric over the seeds that have a result."""
        results = [r for seed in self.seeds if (r := self.results.get((trial_id, seed)))]
        names = dict.fromkeys(name for result in results for name in result.metrics)
        found = {name: self.values(trial_id, name) for name in names}
        return {name: fmean(values.values()) for name, values in found.items() if values}

    def against(self, other_id: str, trial_id: str, metric: str) -> Estimate | None:
        """The difference to another model, over the seeds that both have; None if there is none.

        Pairing by seed removes the variation that two trainings with the same seed share (batches,
        crops), and pairing by image the difficulty of the images.
        """
        of, its = self.values(trial_id, metric), self.values(other_id, metric)
        right, its_right = self.right(trial_id, metric), self.right(other_id, metric)
        rows = [minus(right[seed], its_right[seed]) for seed in right if seed in its_right]
        gaps = [value - its[seed] for seed, value in of.items() if seed in its]
        return estimate(gaps, self.images(metric, rows)) if gaps else None

    @property
    def has_predictions(self) -> bool:
        """Whether predictions of a training are stored."""
        return bool(self._right)

    def shares(self, metric: str) -> dict[str, float]:
        """The domains in a test accuracy, with their shares in percent; none of another metric."""
        key, ood = MetricKey.parse(metric.removeprefix(END)), self.run.goal.ood_domains
        if key is None or (key.split, key.measure) != (SPLIT, "acc"):
            return {}
        id_share = {ID: 100.0, MEAN_OOD: 0.0, MEAN_ID_OOD: 50.0}.get(key.domain)
        if id_share is None:
            return {key.domain: 100.0}
        shares = {self.run.file.trial.data.id_domain: id_share}
        shares |= {domain: (100 - id_share) / len(ood) for domain in ood}
        return {domain: share for domain, share in shares.items() if share}

    def images(self, metric: str, rows: Sequence[Right]) -> list[tuple[float, np.ndarray]]:
        """Of each domain in a test accuracy: its share, and the rows as one array."""
        parts = self.shares(metric).items() if rows else ()
        return [(share, np.stack([row[domain] for row in rows])) for domain, share in parts]

    def right(self, trial_id: str, metric: str) -> dict[int, Right]:
        """Seed -> right and wrong images of the test splits, where predictions are stored."""
        column = "zero_shot" if trial_id == ZERO_SHOT else "predicted"
        if metric.startswith(END):
            column = "end"
        return {
            seed: columns[column]
            for (name, seed), columns in self._right.items()
            if seed in self.seeds and (name == trial_id or trial_id == ZERO_SHOT)
        }

    @cached_property
    def _right(self) -> dict[tuple[str, int], dict[str, Right]]:
        """Of each training whose predictions are stored: by column of its file."""
        folder = self.run.folder
        return {
            (name, seed): columns
            for (name, seed), result in self.results.items()
            if seed is not None and (columns := read_right(folder, result.trial_id))
        }


def read_right(run_folder: Path, training: str) -> dict[str, Right]:
    """The right images by `predicted`, `zero_shot` and `end` of a training's predictions.

    Nothing without a file; a damaged one is named and left out.
    """
    path = predictions_path(run_folder, training)
    if not path.is_file():
        return {}
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
        if "end" not in frame:  # it was chosen itself
            frame["end"] = frame["predicted"]
        domains = list(frame.groupby("domain", observed=True))
        return {
            name: {str(d): (rows[name] == rows["label"]).to_numpy(np.int8) for d, rows in domains}
            for name in ("predicted", "zero_shot", "end")
        }
    except (OSError, ValueError, KeyError) as error:
        logger.warning("%s cannot be read: %s", path, first_line(error))
        return {}


def minus(ours: Right, its: Right) -> Right:
    """Image by image, 1 where only the first model is right, and -1 where only the other one is."""
    return {domain: ours[domain] - its[domain] for domain in ours}


def training_name(key: Key, attempt: int = 1) -> str:
    """Name of a training in the journal: `trial-007-seed-1003`, then `...-try-2` if it failed."""
    trial_id, seed = key
    return f"{trial_id}{_SEED}{seed}" + (f"-try-{attempt}" if attempt > 1 else "")


def key_of(record: TrialRecord) -> Key:
    """What a training of the journal confirms, and with which seed."""
    trial_id, _ = trained(record.trial_id)
    return trial_id, int(record.params["seed"])


def trained(name: str) -> tuple[str, bool]:
    """The trial or reference of a training's name, and whether it is one of `confirm`."""
    trial_id, seed, _ = name.partition(_SEED)
    return trial_id, bool(seed)


def results_of(history: History) -> dict[Key, TrialRecord]:
    """The finished trainings by trial and seed, in the order of their start, after zero-shot."""
    found: dict[Key, TrialRecord] = {}
    if history.zero_shot is not None:
        found[ZERO_SHOT, None] = zero_shot_record(history.zero_shot)
    finished = [record for record in history.records if record.outcome == "finished"]
    return found | {key_of(record): _with_end(record) for record in finished}


def _with_end(record: TrialRecord) -> TrialRecord:
    """The record with its accuracies at the end of the line.

    A training measures them only where it has chosen another point.
    """
    metrics = record.metrics
    if metrics.get("line/a") != 1:
        return record
    keys = {name: MetricKey.parse(name) for name in metrics if name.endswith("acc")}
    ends = {END + name: metrics[name] for name, key in keys.items() if key and key.split == SPLIT}
    return replace(record, curve=(*record.curve[:-1], {**metrics, **ends}))


def failures_of(history: History) -> dict[Key, list[TrialRecord]]:
    """The trainings that have failed, those without a result since."""
    done, found = results_of(history), dict[Key, list[TrialRecord]]()
    for record in history.records:
        if record.outcome == "failed" and key_of(record) not in done:
            found.setdefault(key_of(record), []).append(record)
    return found


def settings_of(run: Run) -> Confirmation | None:
    """The results of all calls so far, with every seed; None before the first.

    Each trial has the labels of the rules that chose it in any call.
    """
    history = run.confirmed
    results = results_of(history)
    if not results:
        return None
    found = {FT: REFERENCE}
    for (trial_id, seed), result in results.items():
        if seed is None or trial_id == FT:
            continue
        params = {key: value for key, value in result.params.items() if key != "seed"}
        earlier = found[trial_id].labels if trial_id in found else ()
        labels = tuple(dict.fromkeys((*earlier, *result.labels)))
        found[trial_id] = replace(result, trial_id=trial_id, params=params, labels=labels)
    seeds = sorted({seed for _, seed in results if seed is not None})
    failed = {key: attempts[-1].error_line for key, attempts in failures_of(history).items()}
    configurations = tuple(found.values())
    return Confirmation(
        run, tuple(seeds), configurations, results, failed, list(history.readings), history.wanted
    )
