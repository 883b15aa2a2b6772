"""The prediction for each image of an evaluation, beside that of the zero-shot model.

Metrics need sums only (`trainers.evaluation.evaluate`). The report of a search also shows which
images are lost and gained against the zero-shot model, and the intervals of `confirm` cover the
choice of the test images.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from trainers.checkpoints.format import PREDICTED_CLASSES
from trainers.data.class_map import ClassMap
from trainers.data.dataset import ImageDataset
from trainers.distributed import world
from trainers.evaluation.evaluate import EvalBatches


class Predictions:
    """Labels and predictions of the images of one domain, in the label space of the domain."""

    def __init__(self, images: ImageDataset, class_map: ClassMap, batches: EvalBatches) -> None:
        self._images, self._class_map = images, class_map
        # Label, prediction, confidence, zero-shot prediction and confidence. Rows of other workers
        # stay 0, so that the sum over the workers is the whole.
        rows = len(images.eval_rows)
        self._values = torch.zeros(rows, 5, dtype=torch.float64, device=batches.device)
        rank, world_size = world()
        self._own = self._values[rank::world_size]

    def add(self, first: int, labels: Tensor, logits: Tensor, zero_shot: Tensor) -> None:
        """Note a batch, whose first image has the index `first` in the worker's share.

        Labels (B,) are those of the domain, logits (B, K) of both models those of the ID classes.
        """
        rows = self._own[first : first + len(labels)]
        rows[:, 0] = self._class_map.columns(labels)
        for column, of_model in ((1, logits), (3, zero_shot)):
            scores = self._class_map.project(of_model)
            below = scores - scores.amax(dim=-1, keepdim=True)
            rows[:, column] = scores.argmax(dim=-1).double()
            rows[:, column + 1] = below.exp().sum(dim=-1).reciprocal().double()

    def table(self) -> pa.Table:
        """One row for each scored image; with several workers a collective operation."""
        if world()[1] > 1:
            dist.all_reduce(self._values)
        values = self._values.cpu().numpy()
        label, predicted, confidence, zero_shot, zero_shot_confidence = values.T
        columns = {
            "image": pa.array(self._images.eval_rows, pa.int32()),
            "label": label.astype("int32"),
            "predicted": predicted.astype("int32"),
            "confidence": confidence.astype("float32"),
            "zero_shot": zero_shot.astype("int32"),
            "zero_shot_confidence": zero_shot_confidence.astype("float32"),
        }
        return pa.table(columns).filter(pa.array(label >= 0))

    @property
    def classes(self) -> list[str]:
        """The scored classes, in the order of the labels."""
        pairs = zip(self._images.class_names, self._class_map.groups, strict=True)
        return [name for name, group in pairs if group]


def parquet_of(by_domain: Mapping[str, Predictions]) -> bytes:
    """All predictions as a Parquet file, whose column `image` counts rows of the split.

    With several workers a collective operation.
    """
    tables = []
    for domain, predictions in by_domain.items():
        table = predictions.table()
        names = pa.array([domain] * len(table)).dictionary_encode()
        tables.append(table.add_column(0, "domain", names))
    classes = {domain: predictions.classes for domain, predictions in by_domain.items()}
    whole = pa.concat_tables(tables).unify_dictionaries()
    return _as_bytes(whole.replace_schema_metadata({PREDICTED_CLASSES: json.dumps(classes)}))


def with_end(of_point: bytes, of_end: bytes) -> bytes:
    """The predictions at a point of the line, and in the column `end` those at its end."""
    table, end = (pq.read_table(io.BytesIO(content)) for content in (of_point, of_end))
    return _as_bytes(table.append_column("end", end["predicted"]))


def _as_bytes(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()
