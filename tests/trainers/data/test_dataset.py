"""Images by row: their order, what they look like, samples, and what is refused."""

import errno
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.images import exif_of, file_of
from tests.trainers.data.layouts import write_table
from tests.trainers.data.seven_images import (
    CLASSES,
    INPUT,
    LABELS,
    dataset_of,
    examples,
    pixels,
    values,
)
from tests.trainers.data.seven_images import cache as cache
from tests.trainers.data.seven_images import root as root
from trainers.data.dataset import ImageDataset, stratified
from trainers.data.loaders import eval_batches
from trainers.data.schema import part_path, write_images
from trainers.data.store import Store, open_store
from trainers.errors import ConfigError, StorageFailed


def test_random_access_gives_the_images_as_written(root):
    images = ImageDataset(open_store(root), "real", "train")
    assert (images.name, images.class_names) == ("real/train", tuple(CLASSES))
    assert (len(images), images.crop_pct) == (7, 1.0)
    assert (images.labels.dtype, images.labels.tolist()) == (np.int64, LABELS)
    for index in (6, 0, 4, 5, 3, 1, 2):
        decoded = images.decode(index)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), pixels(index))
    with pytest.raises(IndexError):
        images.decode(7)
    list(eval_batches(images, INPUT, 7))
    sent = pickle.dumps(images)
    assert file_of(pixels(6)) not in sent
    assert np.array_equal(np.asarray(pickle.loads(sent).decode(5)), pixels(5))


def test_files_that_are_written_again_are_read_again(root):
    first = ImageDataset(root, "real", "train")
    before = values(eval_batches(first, INPUT, 7))
    write_images(part_path(root, "real", "train", 1), examples([6, 5]), CLASSES)
    images = ImageDataset(root, "real", "train")
    assert images.version != first.version
    assert images.labels.tolist() == [*LABELS[:5], LABELS[6], LABELS[5]]
    assert np.array_equal(np.asarray(images.decode(5)), pixels(6))
    assert values(eval_batches(first, INPUT, 7)) == before  # mapped still


def test_a_cache_that_cannot_be_written_is_named(root, cache):
    cache.write_text("a file")
    with pytest.raises(ConfigError, match=rf"cannot be cached: .*HF_DATASETS_CACHE .*{cache}"):
        ImageDataset(root, "real", "train")


@pytest.mark.parametrize("size", [1, 40, 399])
def test_a_sample_has_the_share_of_each_class(size):
    rng = np.random.default_rng(size)
    labels = rng.permutation(np.repeat(np.arange(5), [160, 120, 80, 39, 1]))
    drawn = np.zeros(400)
    for _ in range(300):
        rows = stratified(labels, size, rng)
        assert len(rows) == len(set(rows)) == size
        assert rows == sorted(rows)
        drawn[rows] += 1
        share = np.bincount(labels) * size / 400
        assert (np.abs(np.bincount(labels[rows], minlength=5) - share) <= 2).all()
    assert drawn.mean() / 300 == pytest.approx(size / 400)
    assert drawn.std() / 300 < 2 * (size / 400 * (1 - size / 400) / 300) ** 0.5  # no favourites


PNG, JPEG = file_of(pixels(0)), file_of(pixels(9), "JPEG")


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "quality": 30}),
        ("RGB", "JPEG", {"subsampling": 0, "quality": 95}),
        ("RGB", "JPEG", {"exif": exif_of([(0x0112, 3, 1, b"\x06\0\0\0")])}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {}),
    ],
)
def test_pixels_are_those_of_the_decoded_image_in_every_format(mode, kind, options, tmp_path):
    file = file_of(Image.fromarray(pixels(9)).convert(mode), kind, **options)
    images = dataset_of(tmp_path, [file])
    assert np.array_equal(images.pixels(0).permute(1, 2, 0), np.array(images.decode(0)))


def test_files_of_the_package_datasets_are_understood(tmp_path):
    rows = [(file_of(pixels(n)), LABELS[n]) for n in range(3)]
    write_table(tmp_path / "real" / "train" / "train-00000-of-00001.parquet", rows, CLASSES)
    images = ImageDataset(tmp_path, "real", "train")
    assert images.class_names == tuple(CLASSES)
    assert images.labels.tolist() == LABELS[:3]
    assert np.array_equal(np.asarray(images.decode(2)), pixels(2))


def test_files_that_disagree_or_are_empty_are_refused(tmp_path, root):
    write_images(part_path(root, "real", "train", 2), examples(range(1)), CLASSES[::-1])
    with pytest.raises(ConfigError, match=r"part-00002.parquet: other class names"):
        ImageDataset(root, "real", "train")
    for label in (-1, 3):
        dataset_of(tmp_path / f"label {label}", [PNG])
        with pytest.raises(ConfigError, match=rf"part-00001.parquet: labels {label} to {label}"):
            dataset_of(tmp_path / f"label {label}", [PNG], label)
    with pytest.raises(ConfigError, match=r"empty/real/train: no images in its files"):
        dataset_of(tmp_path / "empty", [])


def test_a_missing_split_is_named(root):
    with pytest.raises(ConfigError, match=r"it has no split 'tain' \(did you mean 'train'\?\)"):
        ImageDataset(root, "real", "tain")
    (root / "real" / "val").mkdir()
    with pytest.raises(ConfigError, match=r"real/val: no \*.parquet file here"):
        ImageDataset(root, "real", "val")


@pytest.mark.parametrize("method", ["list", "open"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EIO, StorageFailed), (errno.EACCES, ConfigError), (errno.ENOENT, ConfigError)],
)
def test_a_storage_that_does_not_answer_is_no_mistake(method, number, expected, root, monkeypatch):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Store, method, refused)
    with pytest.raises(expected, match=os.strerror(number)):
        ImageDataset(open_store(root), "real", "train")
