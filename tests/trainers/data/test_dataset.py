"""Images by row and batches of them: order, views and samples, and what is refused."""

import errno
import hashlib
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.images import exif_of, file_of
from tests.trainers.data.layouts import write_table
from trainers.data import dataset as images_module
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset, StepSampler, stratified, train_batches
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.data.store import CACHE_VARIABLE, Store, open_store
from trainers.errors import ConfigError, StorageFailed
from trainers.models.image import ImageInput

CLASSES = ["cat", "dog", "eel"]
LABELS = [0, 1, 2, 2, 1, 0, 1]
INPUT = ImageInput(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    images_module._opened.cache_clear()
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


RECORDED = (
    (0, "5af44143fc3d2edc", "4d6ed0c6ca2e942c"),
    (7, "6a76a8f4f084a48a", "b7e396a75445a383"),
    (12, "0b4e9cce8efee9e6", "7bb1e6b1ef68f895"),
)
"""Seed, and hashes of the batches of six steps and of an evaluation of a sample, of 0.2."""


def digest(batches):
    found = hashlib.sha256()
    for views, labels in batches:
        found.update(views.numpy().tobytes() + labels.numpy().tobytes())
    return found.hexdigest()[:16]


def values(batches):
    return [(views.tolist(), labels.tolist()) for views, labels in batches]


@pytest.fixture
def root(tmp_path):
    """Seven images in two files, below a folder whose name looks like a pattern."""
    for part, numbers in enumerate((range(5), range(5, 7))):
        file = part_path(tmp_path / "d[a]ta *?", "real", "train", part)
        write_images(file, examples(numbers), CLASSES)
    return tmp_path / "d[a]ta *?"


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
    list(images.eval_batches(INPUT, 7))
    sent = pickle.dumps(images)
    assert file_of(pixels(6)) not in sent
    assert np.array_equal(np.asarray(pickle.loads(sent).decode(5)), pixels(5))


def test_files_that_are_written_again_are_read_again(root):
    first = ImageDataset(root, "real", "train")
    before = values(first.eval_batches(INPUT, 7))
    write_images(part_path(root, "real", "train", 1), examples([6, 5]), CLASSES)
    images = ImageDataset(root, "real", "train")
    assert images.version != first.version
    assert images.labels.tolist() == [*LABELS[:5], LABELS[6], LABELS[5]]
    assert np.array_equal(np.asarray(images.decode(5)), pixels(6))
    assert values(first.eval_batches(INPUT, 7)) == before  # mapped still


def test_a_cache_that_cannot_be_written_is_named(root, cache):
    cache.write_text("a file")
    with pytest.raises(ConfigError, match=rf"cannot be cached: .*HF_DATASETS_CACHE .*{cache}"):
        ImageDataset(root, "real", "train")


@pytest.mark.parametrize(("seed", "train", "evaluated"), RECORDED)
def test_batches_are_bit_for_bit_those_of_0_2(seed, train, evaluated, tmp_path):
    """Recorded with version 0.2 from the same Parquet files."""
    for part, numbers in enumerate((range(20), range(20, 37))):
        rows = [LabelledImage(file_of(pixels(n)), f"{n}.png", n % 3) for n in numbers]
        write_images(part_path(tmp_path, "real", "train", part), rows, CLASSES)
    images = ImageDataset(tmp_path, "real", "train")
    sampler = StepSampler(37, 8, seed=seed, steps=range(3, 9))
    data = DataConfig(crop_area=(0.3, 1.0))
    assert digest(train_batches(images, sampler, INPUT, data)) == train
    assert digest(images.sampled(seed).eval_batches(INPUT, 5)) == evaluated


def test_every_epoch_shows_each_sample_once():
    batches = list(StepSampler(10, 4, seed=0, steps=range(10)))
    order = [sample for batch in batches for _, sample in batch]
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]
    workers = [StepSampler(10, 4, seed=0, steps=range(10), rank=r, world_size=2) for r in (0, 1)]
    for whole, first, second in zip(batches, *workers, strict=True):
        assert (whole[::2], whole[1::2]) == (first, second)


@pytest.mark.parametrize("keep", [0, 1 << 29])
def test_loader_processes_give_the_same_evaluation_batches(root, monkeypatch, keep):
    monkeypatch.setattr(images_module, "KEEP_BYTES", keep)
    images = ImageDataset(root, "real", "train")
    expected = values(images.eval_batches(INPUT, 3))
    assert [len(labels) for _, labels in expected] == [3, 3, 1]
    other = ImageDataset(root, "real", "train").eval_batches(INPUT, 3, workers=2)
    assert values(other) == values(images.eval_batches(INPUT, 3)) == expected


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_loader_killed_for_want_of_shared_memory_says_so(root, monkeypatch, in_main_thread):
    looks = _MultiProcessingDataLoaderIter._try_get_data  # for dead processes, every five seconds
    monkeypatch.setattr(looks, "__defaults__", (0.1,))
    monkeypatch.setattr(ImageDataset, "decode", lambda *_: os.kill(os.getpid(), signal.SIGBUS))
    batches = ImageDataset(root, "real", "train").eval_batches(INPUT, 3, workers=1)
    with ThreadPoolExecutor() as threads, pytest.raises(ConfigError, match="--shm-size") as error:
        list(batches) if in_main_thread else threads.submit(list, batches).result()
    assert error.value.key == "trial.data.workers"


AUGMENT = {
    "rand_augment": {"num_ops": 2},
    "color_jitter": {"brightness": 0.4, "hue": 0.1},
    "random_erasing": {"p": 0.5},
}


@pytest.mark.parametrize("augment", [{}, AUGMENT], ids=["crops", "augmented"])
def test_training_views_depend_on_seed_step_and_sample_alone(augment, root):
    images = ImageDataset(root, "real", "train")

    def views(seed=0, workers=0, first=0, augment=augment):
        data = DataConfig(crop_area=(0.1, 1.0), augment=augment, workers=workers)
        sampler = StepSampler(7, 4, seed=seed, steps=range(first, 6))
        return torch.stack([v for v, _ in train_batches(images, sampler, INPUT, data)])

    alone = views()
    assert (alone.shape, alone.dtype) == ((6, 4, 3, 16, 16), torch.uint8)
    torch.manual_seed(5)
    assert torch.equal(views(workers=2), alone)
    assert torch.equal(views(first=3), alone[3:])
    every = [view.numpy().tobytes() for view in torch.cat([alone, views(seed=1)]).flatten(0, 1)]
    samplers = [StepSampler(7, 4, seed=seed, steps=range(6)) for seed in (0, 1)]
    keys = [(s.seed, *key) for s in samplers for batch in s for key in batch]
    assert len({*every}) == len({*keys}) > 40
    changed = (views(augment={}) != alone).flatten(2).any(dim=-1)
    assert changed.float().mean() >= 0.9 * bool(augment)


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


@pytest.mark.parametrize("size", [0, 4])
def test_evaluation_sees_the_same_sample_everywhere_and_each_image_once(size, root):
    images = ImageDataset(root, "real", "train")
    whole = torch.cat([views for views, _ in images.eval_batches(INPUT, 7)])
    sample = ImageDataset(root, "real", "train").sampled(size)
    rows = list(sample.eval_rows)
    assert len(rows) == (size or 7)
    assert pickle.loads(pickle.dumps(sample)).eval_rows == sample.eval_rows
    ((views, labels),) = sample.eval_batches(INPUT, 7)
    assert torch.equal(views, whole[rows])
    assert labels.tolist() == [LABELS[row] for row in rows]
    for world in (2, 3, 8):
        for rank in range(world):
            share = [views for views, _ in sample.eval_batches(INPUT, 2, rank, world)]
            expected = whole[rows[rank::world]]
            assert torch.equal(torch.cat([whole[:0], *(v for v in share if len(v))]), expected)
    assert list(images.sampled(7).eval_rows) == list(range(7))


def test_views_stay_decoded_up_to_a_limit(root, monkeypatch):
    decoded = []
    decode = ImageDataset.decode
    monkeypatch.setattr(
        ImageDataset, "decode", lambda self, row: (decoded.append(row), decode(self, row))[1]
    )
    monkeypatch.setattr(images_module, "_kept_views", {})
    monkeypatch.setattr(images_module, "KEPT_BYTES", 10 * 3 * 16**2)  # of 7 images, and 3
    for size, number in ((0, 7), (3, 3), (0, 0), (3, 0), (4, 4), (3, 0), (0, 7)):
        decoded.clear()
        list(ImageDataset(root, "real", "train").sampled(size).eval_batches(INPUT, 2))
        assert len(decoded) == number

    images = ImageDataset(root, "real", "train")
    squashed = ImageInput(16, INPUT.mean, INPUT.std, resize_mode="squash")
    first = next(images.eval_batches(INPUT, 7))[0]
    assert not torch.equal(next(images.eval_batches(squashed, 7))[0], first)


PNG, JPEG = file_of(pixels(0)), file_of(pixels(9), "JPEG")


def test_a_loader_process_names_a_bad_image_in_one_line(tmp_path):
    images = dataset_of(tmp_path, [PNG, b"no image"])
    sampler = StepSampler(2, 2, seed=0, steps=range(4))
    for workers in (0, 1):
        for batches in (
            images.eval_batches(INPUT, 2, workers=workers),
            train_batches(images, sampler, INPUT, DataConfig(workers=workers)),
        ):
            with pytest.raises(ConfigError, match=rf"^{tmp_path}/real/train: row 1 .*$") as caught:
                list(batches)
            assert "\n" not in str(caught.value)


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
