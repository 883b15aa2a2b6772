"""The reader beside torchvision's: `python -m tests.benchmarks.reader_throughput`

Makes photographs of ImageNet's usual size as class folders, prepares them as they are and with
their short side made 256, and reads all three in turn, round after round, with two loader
processes each: what changes between the rounds, such as other work on the machine, then meets all
alike, and the ratios of a round mean something where its absolute figures do not. They say how many
times as fast as `ImageFolder` a reader is, or how many times less CPU it needs.

- `ImageFolder`: torchvision's class with the plain recipe: random resized crop to 224, flip,
  `ToTensor`, `Normalize`, all in the loader processes.
- `reader` and `reader, resized`: `ImageDataset` and `train_batches`, as a trial uses them. Batches
  are uint8; a GPU normalises them in next to no time.
- `... normalised here`: the same, normalised in this process, which on a CPU takes its share.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.benchmarks.spread import spread
from trainers.config import DataConfig
from trainers.data.dataset import ImageDataset, train_batches
from trainers.data.prepare import Options
from trainers.data.prepare import prepare as prepare_domains
from trainers.data.sampler import StepSampler
from trainers.data.sources import Source
from trainers.data.storage import CACHE_VARIABLE, open_store
from trainers.data.transforms import normalise
from trainers.models.image import ImageInput

WORKERS, BATCH, SHORT_SIDE = 2, 64, 256
INPUT = ImageInput(224, (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))

Batches = Iterable[Any]


def photograph(rng, width, height):
    """Clouds of every scale, shapes with sharp edges, and grain: about 100 kB at quality 95."""
    clouds = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 8):
        shape = (height * 2**octave // 512 + 2, width * 2**octave // 512 + 2)
        for channel in range(3):
            noise = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
            fine = noise.resize((width, height), Image.Resampling.BICUBIC)
            clouds[..., channel] += np.asarray(fine) * 40 / 1.3**octave
    image = Image.fromarray(np.clip(clouds + 128, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        centre, radius = rng.uniform((0, 0), (width, height)), rng.uniform(width / 50, width / 6)
        angles = np.linspace(0, 2 * np.pi, int(rng.integers(3, 9)), endpoint=False)
        reach = radius * rng.uniform(0.4, 1, (len(angles), 1))
        corners = centre + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon(
            [tuple(c) for c in corners], fill=tuple(int(v) for v in rng.integers(256, size=3))
        )
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    grain = rng.standard_normal((height, width, 1)).astype(np.float32) * 6
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def make_tree(root, images):
    """Class folders of JPEGs, upright and lengthwise."""
    rng = np.random.default_rng(0)
    for number in range(images):
        width, height = (500, 375) if number % 3 else (375, 500)
        path = root / "train" / f"class-{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(rng, width, height).save(path, quality=95)


def prepare(tree, root, resize=None):
    """What `lipsum-tune prepare folders` does."""
    options = Options(resize=resize, val_fraction=0, test_fraction=0)
    prepare_domains({"photos": Source(path=str(tree))}, open_store(root), options)


def image_folder(tree, passes):
    """torchvision's own reader over so many passes."""
    recipe = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                INPUT.size, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(INPUT.mean, INPUT.std),
        ]
    )
    data = ImageFolder(str(tree / "train"), recipe)
    sampler = RandomSampler(data, num_samples=passes * len(data))
    return DataLoader(data, BATCH, sampler=sampler, num_workers=WORKERS)


def reader(root, passes):
    """Ours over so many passes."""
    images = ImageDataset(root, "photos", "train")
    steps = range(passes * len(images) // BATCH)
    sampler = StepSampler(len(images), BATCH, seed=0, steps=steps)
    return train_batches(images, sampler, INPUT, DataConfig(workers=WORKERS, crop_area=(0.08, 1.0)))


def normalised(batches):
    """As a CPU trains on them."""
    return (normalise(views, INPUT) for views, _ in batches)


class Speed(NamedTuple):
    """Of one reader in one round."""

    images_per_s: float
    """From the first batch on, once the loader processes run."""
    cpu_ms: float
    """An image, of all processes and their starting; other work on the machine changes it less."""


def measure(open_batches):
    """Read all of it once."""
    cpu, stream, count = sum(os.times()[:4]), iter(open_batches()), 0
    next(stream)
    began = time.perf_counter()
    for _ in stream:
        count += 1
    seconds = time.perf_counter() - began
    del stream  # ends the loader processes, whose time counts from then on
    cpu_s = sum(os.times()[:4]) - cpu
    return Speed(count * BATCH / seconds, cpu_s * 1e3 / ((count + 1) * BATCH))


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passes", type=int, default=4, help="over the images, in each round")
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.environ[CACHE_VARIABLE] = str(base / "arrow")
        tree, whole, small = base / "tree", base / "whole", base / "small"
        make_tree(tree, arguments.images)
        prepare(tree, whole)
        prepare(tree, small, SHORT_SIDE)
        for name, root in (("as they are", tree), ("resized", small)):
            size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            console.print(f"images {name}: {size / arguments.images / 1e3:.0f} kB each")
        console.print(
            f"{arguments.images} images, {WORKERS} loader processes, {os.cpu_count()} cores, "
            f"torch {torch.__version__}, medians of {arguments.rounds} rounds (least to greatest)"
        )
        console.print(throughput(tree, whole, small, arguments.rounds, arguments.passes))


def throughput(tree, whole, small, rounds, passes):
    """All readers in turn, in every round."""
    readers: dict[str, Callable[[], Batches]] = {
        "ImageFolder": lambda: image_folder(tree, passes),
        "reader": lambda: reader(whole, passes),
        "reader, resized": lambda: reader(small, passes),
        "reader, normalised here": lambda: normalised(reader(whole, passes)),
        "reader, resized, normalised here": lambda: normalised(reader(small, passes)),
    }
    for open_batches in readers.values():
        measure(open_batches)
    speeds = [{name: measure(opened) for name, opened in readers.items()} for _ in range(rounds)]
    table = Table("", "images / s", "ratio, by round", "CPU ms / image", "ratio, by round")
    for name in readers:
        own, theirs = [r[name] for r in speeds], [r["ImageFolder"] for r in speeds]
        pairs = list(zip(own, theirs, strict=True))
        table.add_row(
            name,
            spread([o.images_per_s for o in own], ".0f"),
            spread([o.images_per_s / t.images_per_s for o, t in pairs]),
            spread([o.cpu_ms for o in own]),
            spread([t.cpu_ms / o.cpu_ms for o, t in pairs]),
        )
    return table


if __name__ == "__main__":
    main()
