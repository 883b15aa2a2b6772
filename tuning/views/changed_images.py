"""Thumbnails of validation images that fine-tuning made right or wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from trainers.data.data_root import stored_root
from trainers.data.dataset import ImageDataset
from trainers.data.fingerprint import split_fingerprint
from trainers.data.sources import Source
from trainers.data.storage import Store
from trainers.errors import ConfigError
from tuning.runs.environment import seen_at_start
from tuning.runs.records import SearchRecord
from tuning.views.predictions_report import DomainPredictions

NUM_SHOWN: Final = 6
"""Images of each domain and direction, fewer of many domains."""
MAX_SHOWN: Final = 240
"""Images of a page, at most about 1 MB."""
_PIXELS: Final = 96
"""Longest side of a thumbnail."""
_QUALITY: Final = 75


def changed_images(search: SearchRecord, found: Sequence[DomainPredictions]) -> str | None:
    """HTML of the images of each domain that became right or wrong with the most confidence.

    None if the images cannot be read, or are others than those of the search.
    """
    try:
        number = max(1, min(NUM_SHOWN, MAX_SHOWN // (2 * len(found))))
        root = search.configured("trial", "data", "root")
        store = stored_root(TypeAdapter(str | dict[str, Source]).validate_python(root))
        seen = seen_at_start(search.run_folder) or {}
        parts = []
        for domain in found[: MAX_SHOWN // 2]:
            now = split_fingerprint(store, domain.domain, "val")
            if seen.get(f"{domain.domain}/val") != now:
                return None
            parts.append(_of_domain(store, domain, number))
    except Exception:  # each store has errors of its own, and the report can do without
        return None
    return "".join(parts)


def most_confident(domain: DomainPredictions, *, gained: bool) -> np.ndarray:
    """Places (M,) in the predictions of the images that became right (`gained`), or wrong."""
    before, after = domain.zero_shot.correct, domain.best.correct
    (changed,) = np.nonzero(after & ~before if gained else before & ~after)
    return changed[np.argsort(-domain.best.confidence[changed], kind="stable")]


def _of_domain(store: Store, domain: DomainPredictions, number: int) -> str:
    parts = [f"<h4>{escape(domain.domain)}</h4>"]
    for gained, title in ((True, "became right"), (False, "became wrong")):
        places = most_confident(domain, gained=gained)
        if not len(places):
            continue
        shown = zip(places, _jpegs(store, domain, places[:number]), strict=False)
        images = [_thumbnail(domain, place, jpeg) for place, jpeg in shown if jpeg is not None]
        text = f"{title}, {len(images)} of {len(places)}"
        parts.append(f"<div><p>{text}</p>{''.join(images)}</div>")
    return f'<div class="changed">{"".join(parts)}</div>'


def _thumbnail(domain: DomainPredictions, place: int, jpeg: bytes) -> str:
    before, after = (
        escape(domain.classes[model.predicted[place]]) for model in (domain.zero_shot, domain.best)
    )
    true = escape(domain.classes[domain.labels[place]])
    data = base64.b64encode(jpeg).decode()
    return (
        f'<span class="thumbnail"><img alt="{true}" src="data:image/jpeg;base64,{data}">'
        f"<b>{true}</b><br>{before} → {after}</span>"
    )


def _jpegs(store: Store, domain: DomainPredictions, places: np.ndarray) -> Iterator[bytes | None]:
    """The thumbnails of some predictions, in their order; None for an image that is damaged."""
    images = ImageDataset(store, domain.domain, "val")
    for row in domain.rows[places]:
        try:
            image = images.decode(int(row))
        except ConfigError:
            yield None
            continue
        image.thumbnail((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
        image.info = {}  # Pillow would write a colour profile from there
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY)
        yield file.getvalue()
