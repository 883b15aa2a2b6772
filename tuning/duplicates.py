"""Images that are nearly the same in two splits or domains, by the model's own features.

Two images count as copies if the cosine of their features is as high as that of images of these
data and their own copies, resized to three quarters and compressed as JPEG of quality 60.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text
from torch import Tensor

from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.data.store import open_root
from trainers.data.transforms import eval_view, normalise
from trainers.evaluation.evaluate import EvalBatches, image_features
from trainers.loop.images import open_images
from trainers.seeding import generator
from tuning.views.result_table import borderless_table
from tuning.zero_shot import open_model

SHARE_FOUND = 0.95
"""Share of the copies whose cosine is above the threshold."""
_COPIES = 512  # images of which copies are made
_SCALE, _QUALITY = 0.75, 60
_BLOCK = 4096  # rows and columns of a product


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images, each image of a second split with the most similar one of a first split."""

    threshold: float
    """Least cosine of a pair."""
    images: dict[str, int]
    """Number by split, such as `real/train`."""
    pairs: list[tuple[str, str, str, str, str]]
    """Two splits, a path in the first and in the second, and their cosine, the highest first."""

    def write(self, file: Path) -> None:
        """Write all pairs as CSV."""
        header = ("first", "second", "path in first", "path in second", "cosine")
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([header, *self.pairs])


def near_duplicates(
    config: TrialConfig, *, began: Callable[[str], None] = lambda split: None
) -> NearDuplicates:
    """Compare all splits of the ID domain, and val and test of the others, with each other.

    Nothing is removed. The features of all images are in memory, in float16; their products are
    computed block by block.
    """
    data = config.data
    parts = [(data.id_domain, "train"), *((d, s) for d in data.domains for s in ("val", "test"))]
    store = open_root(data.root)
    there = [part for part in parts if store.exists("/".join(part))]
    sets = [open_images(data, *part) for part in there or parts[:1]]
    began("the model")
    _, encode, batches = open_model(config, sets[0].class_names)
    features: dict[str, Tensor] = {}
    for images in sets:
        began(images.name)
        features[images.name] = image_features(encode, images, batches).half()
    began("copies")
    of_copies = _of_copies(encode, sets, features, batches)
    threshold = float(np.quantile(of_copies, 1 - SHARE_FOUND))
    pairs = []
    for first, second in combinations(sets, 2):
        cosine, nearest = _nearest(features[second.name], features[first.name], batches.device)
        rows = torch.nonzero(cosine >= threshold)[:, 0]
        for row in rows[cosine[rows].argsort(descending=True)].tolist():
            paths = first.path(int(nearest[row])), second.path(row)
            pairs.append((first.name, second.name, *paths, f"{cosine[row]:.4f}"))
    return NearDuplicates(threshold, {images.name: len(images) for images in sets}, pairs)


def duplicates_table(found: NearDuplicates) -> RenderableType:
    """Number of near duplicates by pair of splits, and what counts as one."""
    table = borderless_table("images of", "nearly the same in", "number", "of", text=(0, 1))
    for (first, second), number in Counter(pair[:2] for pair in found.pairs).items():
        table.add_row(escape(second), escape(first), f"{number:,}", f"{found.images[second]:,}")
    threshold = (
        f"Counted if the cosine of the features is at least {found.threshold:.4f}, which "
        f"{SHARE_FOUND:.0%} of resized and recompressed copies of these images reach. "
        "near_duplicates.csv lists the pairs; nothing was removed."
    )
    none = Text("No near duplicates between splits.")
    return Group(table if table.row_count else none, Text(threshold))


def _of_copies(
    encode: Callable[[Tensor], Tensor],
    sets: Sequence[ImageDataset],
    features: dict[str, Tensor],
    batches: EvalBatches,
) -> np.ndarray:
    every = [(images, row) for images in sets for row in range(len(images))]
    chosen = [every[i] for i in generator(0, "copies").permutation(len(every))[:_COPIES]]
    found = []
    for start in range(0, len(chosen), batches.batch_size):
        part = chosen[start : start + batches.batch_size]
        views = torch.stack([
            eval_view(_copy(images.decode(row)), batches.image_input, images.crop_pct)
            for images, row in part
        ])  # fmt: skip
        with torch.no_grad():
            copies = encode(normalise(views.to(batches.device), batches.image_input)).float().cpu()
        originals = torch.stack([features[images.name][row] for images, row in part])
        found.append((copies * originals.float()).sum(dim=-1))
    return torch.cat(found).numpy()


def _copy(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    width, height = (max(1, round(_SCALE * side)) for side in image.size)
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=_QUALITY)
    return Image.open(file).convert("RGB")


def _nearest(of: Tensor, among: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each feature (N, D), the highest cosine among others (M, D), and its index."""
    results = []
    for rows in of.split(_BLOCK):
        best = torch.full((len(rows),), -1.0, device=device)
        index = torch.zeros(len(rows), dtype=torch.long, device=device)
        for start in range(0, len(among), _BLOCK):
            columns = among[start : start + _BLOCK].to(device).float()
            cosine, column = (rows.to(device).float() @ columns.T).max(dim=1)
            index = torch.where(cosine > best, column + start, index)
            best = torch.maximum(best, cosine)
        results.append((best.cpu(), index.cpu()))
    cosines, indices = zip(*results, strict=True)
    return torch.cat(cosines), torch.cat(indices)
