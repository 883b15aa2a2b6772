"""Thumbnails of validation images that fine-tuning made right or wrong.

The predictions of the best trial beside those of the zero-shot model are kept with its weights
(`trainers.checkpoints.format.PREDICTIONS`).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.parquet as pq
from PIL import Image

from trainers.checkpoints.format import PREDICTED_CLASSES, PREDICTIONS
from trainers.data.dataset import ImageDataset
from trainers.data.roots import split_fingerprint
from trainers.data.store import Store, open_root, open_store
from trainers.errors import ConfigError
from tuning.checkpoints import kept_checkpoint
from tuning.log.environment import seen_at_start
from tuning.run import Run

NUM_SHOWN: Final = 6
"""Images of each domain and direction, fewer of many domains."""
MAX_SHOWN: Final = 240
"""Images of a page, at most about 1 MB."""
_PIXELS: Final = 96
"""Longest side of a thumbnail."""


@dataclass(frozen=True)
class Changed:
    """Images of one domain that all became right, or all became wrong."""

    domain: str
    gained: bool
    total: int
    """How many changed in this way."""
    shown: Sequence[dict[str, str]]
    """The most confident: `true`, `before` and `after` are classes, `jpeg` is base64."""


def changed_images(run: Run, checkpoints: str, trial_id: str) -> list[Changed]:
    """The images of each domain that became right or wrong with the most confidence.

    Args:
        checkpoints: folder or URL of the checkpoints of all trials.

    Raises:
        ConfigError: they are not known, for the reason that its text gives.
        Exception: they cannot be read; each store has errors of its own.
    """
    checkpoint = kept_checkpoint(open_store(checkpoints), trial_id)
    if checkpoint is None:
        raise ConfigError(f"the weights of {trial_id} were not kept, nor its predictions")
    with checkpoint.open(PREDICTIONS) as file:
        table = pq.read_table(file)
    classes: dict[str, list[str]] = json.loads(table.schema.metadata[PREDICTED_CLASSES])
    store = open_root(run.file.trial.data.root)
    seen = seen_at_start(run.folder) or {}
    number = max(1, min(NUM_SHOWN, MAX_SHOWN // (2 * len(classes))))
    frame, found = table.to_pandas(), []
    for domain, names in list(classes.items())[: MAX_SHOWN // 2]:
        if seen.get(f"{domain}/val") != split_fingerprint(store, domain, "val"):
            raise ConfigError(f"the images of {domain} have changed since the search")
        of_domain = frame[frame["domain"] == domain].sort_values("confidence", ascending=False)
        before = of_domain["zero_shot"] == of_domain["label"]
        after = of_domain["predicted"] == of_domain["label"]
        for gained, rows in ((True, after & ~before), (False, before & ~after)):
            if rows.any():
                group = of_domain[rows]
                shown = _shown(store, domain, names, group[:number])
                found.append(Changed(domain, gained, len(group), shown))
    return found


def _shown(store: Store, domain: str, names: Sequence[str], rows: Any) -> list[dict[str, str]]:
    """The thumbnails of rows of a split with their classes."""
    images, shown = ImageDataset(store, domain, "val"), []
    for row in rows.itertuples():
        image = images.decode(int(row.image))
        image.thumbnail((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
        image.info = {}  # Pillow would write a colour profile from there
        file = io.BytesIO()
        image.save(file, "JPEG")
        classes = {"true": row.label, "before": row.zero_shot, "after": row.predicted}
        found = {name: names[label] for name, label in classes.items()}
        shown.append({**found, "jpeg": base64.b64encode(file.getvalue()).decode()})
    return shown
