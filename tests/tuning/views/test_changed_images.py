import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tuning import fakes
from tests.tuning.run_folders import swap_classes
from trainers.checkpoints.format import PREDICTED_CLASSES, PREDICTIONS
from trainers.data.dataset import ImageDataset
from trainers.data.roots import split_fingerprint
from trainers.data.store import open_store
from trainers.errors import ConfigError
from tuning.views import changed_images as module
from tuning.views.changed_images import NUM_SHOWN, changed_images
from tuning.views.results import ResultsView


@pytest.fixture
def root(images_root, tmp_path):
    return Path(shutil.copytree(images_root, tmp_path / "images"))


@pytest.fixture
def search(root, tmp_path):
    seen = {"sketch/val": split_fingerprint(open_store(root), "sketch", "val")}
    (tmp_path / "environment.json").write_text(json.dumps({"data": seen}))
    return fakes.Search(tmp_path, config={"trial.data.root": str(root)})


@pytest.fixture
def checkpoints(root, tmp_path, monkeypatch):
    """Even rows became right and odd ones wrong; the later the row, the less confident."""
    images = ImageDataset(root, "sketch", "val")
    rows = np.arange(len(images), dtype=np.int32)
    labels = images.labels.astype("int32")
    wrong = (labels + 1) % len(images.class_names)
    table = pa.table(
        {
            "domain": ["sketch"] * len(rows),
            "image": rows,
            "label": labels,
            "predicted": np.where(rows % 2 == 0, labels, wrong),
            "confidence": np.linspace(0.9, 0.1, len(rows), dtype=np.float32),
            "zero_shot": np.where(rows % 2 == 1, labels, wrong),
        }
    )
    classes = json.dumps({"sketch": list(images.class_names)})
    pq.write_table(
        table.replace_schema_metadata({PREDICTED_CLASSES: classes}), tmp_path / PREDICTIONS
    )
    monkeypatch.setattr(module, "kept_checkpoint", lambda store, trial_id: open_store(tmp_path))
    return str(tmp_path)


def test_the_most_confident_images_that_changed_are_shown(root, search, checkpoints):
    images = ImageDataset(root, "sketch", "val")
    right, wrong = changed_images(search.run(), checkpoints, "trial-000")
    assert (right.domain, right.gained, wrong.gained) == ("sketch", True, False)
    assert right.total + wrong.total == len(images)
    for group, first in ((right, 0), (wrong, 1)):
        rows = range(first, 2 * NUM_SHOWN, 2)
        assert len(group.shown) == len(rows)
        for shown, row in zip(group.shown, rows, strict=True):
            names = images.class_names
            true, other = names[images.labels[row]], names[(images.labels[row] + 1) % len(names)]
            before, after = (other, true) if group.gained else (true, other)
            assert (shown["true"], shown["before"], shown["after"]) == (true, before, after)
            thumbnail = Image.open(io.BytesIO(base64.b64decode(shown["jpeg"])))
            assert max(thumbnail.size) <= 96
            pixels = np.asarray(images.decode(row).resize(thumbnail.size), float)
            assert abs(np.asarray(thumbnail, float) - pixels).mean() < 8


def test_images_that_have_changed_since_are_left_out(root, search, checkpoints):
    swap_classes(root, "sketch", "val")
    with pytest.raises(ConfigError, match="images of sketch have changed since the search"):
        changed_images(search.run(), checkpoints, "trial-000")


def test_a_trial_without_predictions_says_so(search, tmp_path):
    with pytest.raises(ConfigError, match="the weights of trial-000 were not kept"):
        changed_images(search.run(), str(tmp_path), "trial-000")


def test_predictions_that_cannot_be_read_are_named_on_the_page(search, checkpoints, tmp_path):
    (tmp_path / PREDICTIONS).write_bytes(b"no table")
    search = replace(search, folder=tmp_path / "run")
    view = ResultsView(checkpoints)
    page, pages = search.folder / "report" / "index.html", []
    for is_over in (False, True):
        view.write(search.run([fakes.trial(0)], is_live=not is_over))
        pages.append(page.read_text("utf-8"))
    assert ['http-equiv="refresh"' in text for text in pages] == [True, False]
    said = "Images that became right or wrong are left out: ArrowInvalid: "
    assert [said in text for text in pages] == [False, True]
    assert (search.folder / "trials.parquet").is_file()
