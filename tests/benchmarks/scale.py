"""What do as many images as ImageNet's cost? `python -m tests.benchmarks.scale`

Images of 32 pixels in the folders of ImageNet and five shifts, with all 1,000 classes, are prepared
and read by trials of the embedded model. Each part runs in a process of its own; shown are CPU
seconds and memory. Further columns have the exponents of the growth from the second-largest number
of training images to the largest, and what follows for ImageNet's. The last column is measured with
as many rows as ImageNet's, all of one image. What larger images and models cost is measured
elsewhere: `tests.benchmarks.loading`, and `lipsum-tune plan --on`.
"""

import argparse
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from trainers.config import TrialConfig
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset, train_batches
from trainers.data.prepare import Options, prepare
from trainers.data.published import IMAGENET, objectnet_class_map, wordnet_ids
from trainers.data.sampler import StepSampler
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.data.sources import Source
from trainers.data.store import CACHE_VARIABLE, open_store
from trainers.data.suite import imagenet_names
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop.evaluate_run import class_maps
from trainers.loop.state import load_split, open_images, start
from trainers.models.clip import create_clip, load_tokenizer
from trainers.models.config import ModelConfig
from trainers.models.image import ImageInput
from trainers.models.text_head import zero_shot_heads
from trainers.texts.prompts import Prompts

IMAGENET_TRAIN = 1_281_167
DOMAIN, *SHIFTS = IMAGENET
LOOKUPS = 2000


@contextmanager
def measured(found, name):
    """Note the CPU seconds of the block, and by how many MB it raises the peak of this process,
    pages of mapped files included."""
    began, before = time.process_time(), peak_mb()
    yield
    found[f"{name}, CPU-s"] = time.process_time() - began
    found[f"{name}, MB more"] = peak_mb() - before


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_mb(process):
    """Memory of a process without files that it maps."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / 2**20


def trial(folder, **settings):
    """Two steps of Lipsum-FT of the embedded model."""
    data = {"root": str(folder / "data"), "suite": "imagenet", "ood_domains": SHIFTS}
    settings = {"optim": {"batch_size": 64}, "steps": 2, **settings}
    return TrialConfig.model_validate({"data": data, "method": {"name": "lipsum_ft"}, **settings})


def write(folder, images):
    """Class folders: training images, two images of each class of a shift, and one of val.

    The shifts are prepared, too: half of their images become val.
    """
    rng = np.random.default_rng(0)

    def put(domain, path):
        file = folder / domain / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)  # all images differ
        Image.fromarray(pixels).resize((32, 32)).save(file)

    for number in range(images):
        put(DOMAIN, f"train/{wordnet_ids()[number % 1000]}/{number:07}.jpeg")
    for class_ in wordnet_ids():
        put(DOMAIN, f"val/{class_}/0.jpeg")
    classes = {
        "imagenet-v2": map(str, range(1000)),
        "imagenet-r": wordnet_ids("imagenet_r"),
        "imagenet-a": wordnet_ids("imagenet_a"),
        "imagenet-sketch": wordnet_ids(),
        "objectnet": (f"images/{name}" for name in objectnet_class_map()),
    }
    for shift, of_shift in classes.items():
        for class_ in of_shift:
            put(shift, f"{class_}/0.jpeg")
            put(shift, f"{class_}/1.jpeg")
        source = Source(path=str(folder / shift), layout=shift)
        prepare({shift: source}, open_store(folder / "data"), Options(val_fraction=0.5))
    return {}


def rows(folder, images):
    """Training images without `prepare`: all of them one image."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    for part, first in enumerate(range(0, images, 4096)):
        numbers = range(first, min(images, first + 4096))
        of_part = [LabelledImage(file.getvalue(), f"{n:07}.jpeg", n % 1000) for n in numbers]
        path = part_path(folder / "data", DOMAIN, "train", part)
        write_images(path, of_part, wordnet_ids(), {})
    return {}


def preparation(folder, images):
    """As the header of `imagenet_vit_b16` has it."""
    found, source = {}, Source(path=str(folder / DOMAIN), layout=DOMAIN)
    with measured(found, "prepare"):
        prepare({DOMAIN: source}, open_store(folder / "data"), Options(val_fraction=0.02))
    return found


def first_reading(folder, images):
    began = time.process_time()
    ImageDataset(folder / "data", DOMAIN, "train")
    return {"first reading: Arrow's copy, CPU-s": time.process_time() - began}


def reading(folder, images):
    """Opening the training images, random rows of them, and a process that loads them."""
    found, own = {}, psutil.Process()
    before = own_mb(own)
    with measured(found, "opening"):
        train = ImageDataset(folder / "data", DOMAIN, "train")
    found["opening, MB more"] = own_mb(own) - before
    chosen = np.random.default_rng(0).permutation(len(train))[:LOOKUPS].tolist()
    began = time.process_time()
    for row in chosen:
        train.path(row)
    found["a lookup of a row, CPU-us"] = 1e6 * (time.process_time() - began) / LOOKUPS
    sampler = StepSampler(len(train), 64, seed=0, steps=range(100))
    data, image_input = DataConfig(workers=1), ImageInput(48, (0.5,) * 3, (0.5,) * 3)
    batches = train_batches(train, sampler, image_input, data)
    next(batches)
    (loader,) = own.children()
    found["a loader process, MB of its own"] = (
        loader.memory_full_info().uss / 2**20
    )  # not shared with this one
    return found


def first_start(folder, images):
    """With the head of 1,000 classes in 80 templates."""
    found = {}
    with measured(found, "first start: 80,000 prompts"):
        start(trial(folder))
    return found


def large_text_tower(folder, images):
    """A prompt of ViT-B/16's text tower with random weights, of four classes."""
    model = ModelConfig(name="ViT-B-16-quickgelu", pretrained="random")
    prompts = Prompts(tuple(imagenet_names().values())[:4])
    clip, tokenizer = create_clip(model), load_tokenizer(model)
    began = time.process_time()
    zero_shot_heads(clip, tokenizer, prompts)
    number = len(prompts.names) * len(prompts.templates)
    return {"a prompt of ViT-B/16, CPU-ms": 1000 * (time.process_time() - began) / number}


def later_start(folder, images):
    """Until the first batch is there."""
    found, config = {}, trial(folder)
    with measured(found, "later start"):
        run = start(config)
        train, held_out = open_images(config.data, DOMAIN, "train"), load_split(config, "val")
        class_maps(run, held_out)
        next(training_batches(run, train))
    return found


def training(folder, images):
    """Two steps, an evaluation with the line, and a checkpoint."""
    found = {}
    with measured(found, "trial of two steps"):
        (report,) = fine_tune(trial(folder))
    report.save(folder / "checkpoint")
    saved = sum(file.stat().st_size for file in (folder / "checkpoint").rglob("*"))
    evaluated = report.metrics["eval/images"]
    found["evaluated images"] = evaluated
    found["predictions, bytes an image"] = len(report.run.predictions) / evaluated
    found["checkpoint without predictions, MB"] = (saved - len(report.run.predictions)) / 1e6
    return found


PARTS = (
    write, preparation, first_reading, reading, large_text_tower, first_start, later_start,
    training,
)  # fmt: skip
OF_ROWS = (rows, first_reading, reading)


def in_new_processes(images, parts=PARTS):
    found = {}
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        own = {CACHE_VARIABLE: f"{folder}/arrow", "XDG_CACHE_HOME": f"{folder}/cache"}
        for part in parts:
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--one", part.__name__]
            command += ["--images", str(images), "--folder", folder]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | own
            )
            found |= json.loads(done.stdout.splitlines()[-1])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument(
        "--one", choices=[part.__name__ for part in (*PARTS, rows)], help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = globals()[arguments.one](arguments.folder, *arguments.images)
        return print(json.dumps(found))
    of_number = {images: in_new_processes(images) for images in sorted(arguments.images)}
    of_rows = in_new_processes(IMAGENET_TRAIN, OF_ROWS)
    *_, less, more = of_number
    columns = (*(f"{n:,}" for n in of_number), "exponent", f"{IMAGENET_TRAIN:,}, expected")
    table = Table("", *columns, "as many rows")
    for name in of_number[more]:
        small, large = (max(of_number[n][name], 1e-3) for n in (less, more))
        growth = math.log(large / small) / math.log(more / less)
        expected = large * (IMAGENET_TRAIN / more) ** growth
        values = [*(found[name] for found in of_number.values()), growth, expected]
        values += [of_rows[name]] if name in of_rows else []
        table.add_row(name, *(f"{value:,.3g}" for value in values))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
