import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tuning import fakes
from tests.tuning.run_folders import swap_classes
from trainers.data.dataset import ImageDataset
from trainers.data.fingerprint import split_fingerprint
from trainers.data.schema import part_path
from trainers.data.storage import open_store
from tuning.views.changed_images import MAX_SHOWN, NUM_SHOWN, changed_images, most_confident
from tuning.views.predictions_report import DomainPredictions, ModelPredictions


@pytest.fixture
def root(images_root, tmp_path):
    """Images whose validation split of sketch has two files."""
    copied = Path(shutil.copytree(images_root, tmp_path / "images"))
    whole = pq.read_table(part_path(copied, "sketch", "val"))
    for part, rows in enumerate((whole[:5], whole[5:])):
        pq.write_table(rows, part_path(copied, "sketch", "val", part))
    return copied


@pytest.fixture
def search(root, tmp_path):
    seen = {"sketch/val": split_fingerprint(open_store(root), "sketch", "val")}
    (tmp_path / "environment.json").write_text(json.dumps({"data": seen}))
    return fakes.search_record(tmp_path, config={"trial": {"data": {"root": str(root)}}})


def predictions(images):
    """Even rows became right and odd ones wrong; the later the row, the less confident."""
    rows = np.arange(len(images))
    labels = images.labels.astype("int32")
    wrong = (labels + 1) % len(images.class_names)
    confidence = np.linspace(0.9, 0.1, len(rows), dtype=np.float32)

    def model(right):
        return ModelPredictions(np.where(right, labels, wrong), confidence, right)

    best, zero_shot = model(rows % 2 == 0), model(rows % 2 == 1)
    return DomainPredictions("sketch", images.class_names, labels, best, zero_shot, rows)


def test_the_most_confident_images_are_first(root):
    found = predictions(ImageDataset(root, "sketch", "val"))
    assert most_confident(found, gained=True)[:3].tolist() == [0, 2, 4]
    best = replace(found.best, confidence=found.best.confidence[::-1])
    odd = most_confident(replace(found, best=best), gained=False)
    assert odd.tolist() == list(range(len(found.rows) - 1, 0, -2))


def test_thumbnails_are_those_of_the_predicted_images(root, search):
    images = ImageDataset(root, "sketch", "val")
    found = predictions(images)
    html = changed_images(search, [found])
    assert html is not None
    assert f"became right, {NUM_SHOWN} of {len(images) // 2}" in html
    shown = [
        base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    ]
    rows = [*range(0, 2 * NUM_SHOWN, 2), *range(1, 2 * NUM_SHOWN, 2)]
    assert len(shown) == len(rows)
    for data, row in zip(shown, rows, strict=True):
        assert len(data) < 5000
        thumbnail, original = Image.open(io.BytesIO(data)), images.decode(row)
        assert max(thumbnail.size) <= 96
        pixels = np.asarray(original.resize(thumbnail.size), float)
        assert abs(np.asarray(thumbnail, float) - pixels).mean() < 8
    name = images.class_names[images.labels[0]]
    wrong = images.class_names[(images.labels[0] + 1) % len(images.class_names)]
    assert f"<b>{name}</b><br>{wrong} → {name}</span>" in html


def test_a_page_of_many_domains_has_few_images(root, search):
    found = predictions(ImageDataset(root, "sketch", "val"))
    html = changed_images(search, [found] * (MAX_SHOWN // 4))
    assert html is not None
    assert html.count("<img") == MAX_SHOWN
    html = changed_images(search, [found] * (MAX_SHOWN // 2 + 1))
    assert html is not None
    assert html.count("<img") == MAX_SHOWN


def test_names_of_classes_are_no_markup(root, search):
    found = predictions(ImageDataset(root, "sketch", "val"))
    html = changed_images(search, [replace(found, classes=["<i>"] * len(found.classes))])
    assert html is not None
    assert "<i>" not in html
    assert "&lt;i&gt;" in html


def test_images_that_are_gone_or_others_are_left_out(root, search):
    found = predictions(ImageDataset(root, "sketch", "val"))
    swap_classes(root, "sketch", "val")
    assert changed_images(search, [found]) is None
    shutil.rmtree(root)
    assert changed_images(search, [found]) is None


def test_the_embedded_benchmark_is_not_built_for_thumbnails(root, search, monkeypatch):
    found = predictions(ImageDataset(root, "sketch", "val"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "empty"))
    embedded = replace(search, config={"trial": {"data": {"root": "openmoji"}}})
    assert changed_images(embedded, [found]) is None
    assert not (root / "empty").exists()
