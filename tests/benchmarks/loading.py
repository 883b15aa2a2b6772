"""Images per second of CPU time beside torchvision's loop: `python -m tests.benchmarks.loading`

Two photographs that come with scikit-learn, in 192 crops of 500 x 375 pixels, are read in batches
by one process with one thread: by torchvision's `ImageFolder` in a `DataLoader`, and as a trial
reads what `prepare` has stored. All do so one after the other, in an order that changes from round
to round, so whatever else the machine does affects them alike. A ratio is that of one round, and
the table has the median and the range of the rounds.

`decoded` has the pixels in memory, as a cache of decoded images would at best. Evaluation decodes
and resizes with PIL, as open_clip does; `torchvision decodes` and `torchvision resizes, too` are
what it would do with the functions of training. The last table compares its views with these, and
with those of images that are stored with fewer pixels.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional

from tests.benchmarks.spread import spread
from trainers.data import images as images_module
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset, eval_samples, train_batches
from trainers.data.prepare import Options, prepare
from trainers.data.sampler import StepSampler
from trainers.data.sources import Source
from trainers.data.store import CACHE_VARIABLE, open_store
from trainers.models.image import ImageInput

INPUT = ImageInput(224, (0.5,) * 3, (0.5,) * 3)
IMAGES, BATCH = 192, 64
AREAS = {"crop 0.9 to 1": (0.9, 1.0), "crop 0.08 to 1": (0.08, 1.0)}
BICUBIC = transforms.InterpolationMode.BICUBIC


class Decoded(ImageDataset):
    """Images whose pixels are in memory."""

    def __init__(self, *part):
        super().__init__(*part)
        self._pixels = [super(Decoded, self).pixels(row) for row in range(len(self))]

    def pixels(self, index):
        return self._pixels[index]


class DecodedByTorchvision(ImageDataset):
    """Images that evaluations decode as training does."""

    def decode(self, index):
        return functional.to_pil_image(self.pixels(index))


def write_photographs(tree):
    """Class folders of JPEGs of quality 95."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))
        left, top = int(rng.integers(640 - 500 + 1)), int(rng.integers(427 - 375 + 1))
        path = tree / str(number % 2) / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + 500, top + 375)).save(path, quality=95)


def stored(tree, root, resize=None):
    """Domain and split as `lipsum-tune prepare folders` writes them."""
    options = Options(resize=resize, val_fraction=0, test_fraction=0)
    prepare({"photos": Source(path=str(tree))}, open_store(root), options)
    return root, "photos", "train"


def image_folder(tree, *steps):
    """A function of the round that returns batches of views, as those below."""
    data = ImageFolder(str(tree), transforms.Compose([*steps, transforms.PILToTensor()]))
    return lambda _: DataLoader(data, BATCH, shuffle=True)


def in_training(images, area):
    config, steps = DataConfig(crop_area=area, workers=0), IMAGES // BATCH

    def batches(number):
        of_round = range(number * steps, (number + 1) * steps)
        return train_batches(
            images, StepSampler(IMAGES, BATCH, seed=0, steps=of_round), INPUT, config
        )

    return batches


def in_evaluation(images):
    rows = [list(range(first, first + BATCH)) for first in range(0, IMAGES, BATCH)]
    return lambda _: eval_samples(images, rows, INPUT)


def resized_by_torchvision(images):
    def view(row):
        short = functional.resize(images.pixels(row), [INPUT.size], BICUBIC, antialias=True)
        return functional.center_crop(short, [INPUT.size, INPUT.size])

    batches = [range(first, first + BATCH) for first in range(0, IMAGES, BATCH)]
    return lambda _: ((torch.stack([view(row) for row in rows]), None) for rows in batches)


def seconds(readers, rounds):
    """CPU seconds of each reader in each round but the first, which fills caches."""
    taken = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(readers), len(readers)):
            began = time.process_time()
            for _ in readers[name](number):
                pass
            taken[name].append(time.process_time() - began)
    return {name: of_rounds[1:] for name, of_rounds in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        os.environ[CACHE_VARIABLE] = f"{folder}/cache"
        tree = Path(folder, "tree")
        write_photographs(tree)
        whole = stored(tree, Path(folder, "whole"))
        small = stored(tree, Path(folder, "small"), 256)
        with patch.object(images_module, "_RESIZED", images_module._WHOLE):
            fine = stored(tree, Path(folder, "fine"), 256)
        parts = {
            "as it is": ImageDataset(*whole),
            "--resize 256, q95 4:4:4": ImageDataset(*fine),
            "--resize 256 (q90 4:2:0)": ImageDataset(*small),
            "256 pixels, decoded": Decoded(*small),
        }
        readers = {}
        for kind, area in AREAS.items():
            crop = transforms.RandomResizedCrop(INPUT.size, area, interpolation=BICUBIC)
            flip = transforms.RandomHorizontalFlip()
            readers[kind, "ImageFolder"] = image_folder(tree, crop, flip)
            readers |= {(kind, name): in_training(images, area) for name, images in parts.items()}
        resized, centre = transforms.Resize(INPUT.size, BICUBIC), transforms.CenterCrop(INPUT.size)
        readers["evaluation", "ImageFolder"] = image_folder(tree, resized, centre)
        del parts["256 pixels, decoded"]  # evaluation does not read it
        parts["as it is, torchvision decodes"] = DecodedByTorchvision(*whole)
        evaluated = {name: in_evaluation(images) for name, images in parts.items()}
        evaluated["as it is, torchvision resizes, too"] = resized_by_torchvision(parts["as it is"])
        readers |= {("evaluation", name): batches for name, batches in evaluated.items()}
        taken = seconds(readers, rounds)

        table = Table("", "read by, from", "images / CPU-s", "/ ImageFolder")
        for (kind, name), own in taken.items():
            theirs = taken[kind, "ImageFolder"]
            ratios = [a / b for a, b in zip(theirs, own, strict=True)]
            table.add_row(kind, name, spread([IMAGES / s for s in own], ".0f"), spread(ratios))
        pixels = Table("evaluation", "KB an image", "grey levels off: mean", "99 % below", "most")
        views = {n: torch.cat([v for v, _ in own(0)]).int() for n, own in evaluated.items()}
        for name, of_part in views.items():
            off = (of_part - views["as it is"]).abs().float().flatten()
            files = Path(parts.get(name, parts["as it is"]).store.root).rglob("*.parquet")
            size = sum(file.stat().st_size for file in files) / IMAGES / 1000
            levels = (off.mean(), off.sort().values[int(0.99 * len(off))], off.max())
            pixels.add_row(name, f"{size:.0f}", *(f"{level:.2g}" for level in levels))
    console = Console(width=110)
    console.print(table, pixels)


if __name__ == "__main__":
    main()
