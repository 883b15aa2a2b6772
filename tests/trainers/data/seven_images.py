"""Seven images of three classes in two files, and what reads them."""

import numpy as np
import pytest

from tests.images import file_of
from trainers.data import dataset as images_module
from trainers.data import loaders
from trainers.data.dataset import ImageDataset
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.data.store import CACHE_VARIABLE
from trainers.models.image import ImageInput

CLASSES = ["cat", "dog", "eel"]
LABELS = [0, 1, 2, 2, 1, 0, 1]
INPUT = ImageInput(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    images_module._opened.cache_clear()
    loaders._opened.cache_clear()
    return tmp_path / "cache"


def pixels(number):
    """An image of (20 + number, 30, 3) uint8 that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)


def examples(numbers):
    return [LabelledImage(file_of(pixels(n)), f"{n}.png", LABELS[n]) for n in numbers]


def dataset_of(root, files, label=0):
    """Images of one class, from the content of their files."""
    images = [LabelledImage(data, f"{number}.png", label) for number, data in enumerate(files)]
    path = part_path(root, "real", "train", len(list(root.glob("real/train/*"))))
    write_images(path, images, CLASSES)
    return ImageDataset(root, "real", "train")


@pytest.fixture
def root(tmp_path):
    """Seven images in two files, below a folder whose name looks like a pattern."""
    for part, numbers in enumerate((range(5), range(5, 7))):
        file = part_path(tmp_path / "d[a]ta *?", "real", "train", part)
        write_images(file, examples(numbers), CLASSES)
    return tmp_path / "d[a]ta *?"


def values(batches):
    return [(views.tolist(), labels.tolist()) for views, labels in batches]
