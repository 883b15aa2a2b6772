"""Predictions of the best trial on the validation splits, beside those of the zero-shot model.

They are kept beside the weights (`trainers.checkpoints.format.PREDICTIONS`): calibration by
confidence, images that are gained and lost, and the classes that are confused most often.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from trainers.checkpoints.format import PREDICTED_CLASSES, PREDICTIONS
from trainers.data.storage import Store, open_store
from trainers.evaluation.metrics import ECE_BINS
from tuning.checkpoints.files import kept_checkpoint
from tuning.views.formatting import format_percent
from tuning.views.result_table import Column, ResultTable, Row

NUM_CONFUSIONS: Final = 10
"""Confusions of each domain in the report."""


@dataclass(frozen=True)
class ModelPredictions:
    """Predictions of one model for N images."""

    predicted: np.ndarray
    """(N,) int32, indices into the classes of the domain."""
    confidence: np.ndarray
    """(N,) float32, 0 to 1."""
    correct: np.ndarray
    """(N,) bool."""

    @property
    def ece(self) -> float:
        """The calibration error in percent, as `trainers.evaluation.calibration` defines it."""
        number, accuracy, confidence = self.bins()
        return 100 * float((number * np.abs(accuracy - confidence)).sum() / number.sum())

    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The number, accuracy and mean confidence (0 to 1) of the images in each bin of
        confidence of equal width; bins without images are left out."""
        index = np.minimum((self.confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        sums = [
            np.bincount(index, weights, ECE_BINS)
            for weights in (None, self.correct, self.confidence)
        ]
        number, correct, confidence = (values[sums[0] > 0] for values in sums)
        return number, correct / number, confidence / number


@dataclass(frozen=True)
class DomainPredictions:
    """Predictions on the validation images of one domain."""

    domain: str
    classes: Sequence[str]
    labels: np.ndarray
    """(N,) int32, indices into the classes."""
    best: ModelPredictions
    zero_shot: ModelPredictions
    rows: np.ndarray
    """(N,) int32, rows of the images in the validation split."""


def kept_predictions(checkpoints: str, trial_id: str) -> list[DomainPredictions] | None:
    """Predictions of a trial by domain, the ID domain first; None if they cannot be read."""
    try:
        checkpoint = kept_checkpoint(open_store(checkpoints), trial_id)
        return None if checkpoint is None else read_predictions(checkpoint)
    except Exception:  # each store has errors of its own, and the report can do without
        return None


def read_predictions(checkpoint: Store) -> list[DomainPredictions]:
    """Predictions in a checkpoint.

    Raises:
        OSError: there are none, or they cannot be read.
    """
    with checkpoint.open(PREDICTIONS) as file:
        table = pq.read_table(file)
    classes: dict[str, list[str]] = json.loads(table.schema.metadata[PREDICTED_CLASSES])
    domains, found = table["domain"].to_numpy(), []
    for domain, names in classes.items():
        of_domain = {
            name: table[name].to_numpy()[domains == domain]
            for name in table.column_names
            if name != "domain"
        }
        labels = of_domain["label"]
        best, zero_shot = (
            ModelPredictions(predicted, np.nan_to_num(of_domain[confidence]), predicted == labels)
            for predicted, confidence in (
                (of_domain["predicted"], "confidence"),
                (of_domain["zero_shot"], "zero_shot_confidence"),
            )
        )
        found.append(DomainPredictions(domain, names, labels, best, zero_shot, of_domain["image"]))
    return found


def changes_table(found: Sequence[DomainPredictions], best: str) -> ResultTable:
    """One row for each domain: images gained and lost against the zero-shot model."""
    columns = [
        Column("domain", "domain", left=True),
        Column("images", "images"),
        Column("gained", "wrong\nto right"),
        Column("lost", "right\nto wrong"),
        Column("right", "right in\nboth"),
        Column("wrong", "wrong in\nboth"),
        Column("zero_shot_ece", "ECE\nzero-shot", format_percent),
        Column("ece", f"ECE\n{best}", format_percent),
    ]
    rows = []
    for domain in found:
        before, after = domain.zero_shot.correct, domain.best.correct
        values = {
            "domain": domain.domain,
            "images": len(domain.labels),
            "gained": int((~before & after).sum()),
            "lost": int((before & ~after).sum()),
            "right": int((before & after).sum()),
            "wrong": int((~before & ~after).sum()),
            "zero_shot_ece": domain.zero_shot.ece,
            "ece": domain.best.ece,
        }
        rows.append(Row(values))
    notes = [f"Validation images, from the zero-shot model to {best}. ECE in percent, 15 bins."]
    return ResultTable("Changes against the zero-shot model", columns, rows, notes)


def confusions_table(domain: DomainPredictions, best: str) -> ResultTable:
    """The most frequent confusions in one domain, and how often the zero-shot model has each."""
    columns = [
        Column("label", "class", left=True),
        Column("predicted", "predicted as", left=True),
        Column("images", best),
        Column("zero_shot", "zero-shot"),
        Column("of", "in all"),
    ]
    after, before = (
        Counter(zip(domain.labels[~m.correct], m.predicted[~m.correct], strict=True))
        for m in (domain.best, domain.zero_shot)
    )
    totals = np.bincount(domain.labels, minlength=len(domain.classes))
    rows = [
        Row(
            {
                "label": domain.classes[label],
                "predicted": domain.classes[predicted],
                "images": number,
                "zero_shot": before[label, predicted],
                "of": totals[label],
            }
        )
        # Equal numbers in the order of the classes, whatever the order of the images.
        for (label, predicted), number in sorted(
            after.items(), key=lambda item: (-item[1], item[0])
        )[:NUM_CONFUSIONS]
    ]
    return ResultTable(domain.domain, columns, rows)
