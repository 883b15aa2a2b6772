"""Batches of images: which, in which order and views, by processes or not."""

import errno
import hashlib
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.images import file_of
from tests.trainers.data.seven_images import CLASSES, INPUT, LABELS, dataset_of, pixels, values
from tests.trainers.data.seven_images import cache as cache
from tests.trainers.data.seven_images import root as root
from trainers.data import loaders, record_file
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset
from trainers.data.loaders import StepSampler, eval_batches, eval_samples, train_batches
from trainers.data.record_file import RecordFolder
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import ConfigError
from trainers.models.image import ImageInput

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
    assert digest(eval_batches(images.sampled(seed), INPUT, 5)) == evaluated


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
    monkeypatch.setattr(loaders, "KEEP_BYTES", keep)
    images = ImageDataset(root, "real", "train")
    expected = values(eval_batches(images, INPUT, 3))
    assert [len(labels) for _, labels in expected] == [3, 3, 1]
    other = eval_batches(ImageDataset(root, "real", "train"), INPUT, 3, workers=2)
    assert values(other) == values(eval_batches(images, INPUT, 3)) == expected


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_loader_killed_for_want_of_shared_memory_says_so(root, monkeypatch, in_main_thread):
    looks = _MultiProcessingDataLoaderIter._try_get_data  # for dead processes, every five seconds
    monkeypatch.setattr(looks, "__defaults__", (0.1,))
    monkeypatch.setattr(ImageDataset, "decode", lambda *_: os.kill(os.getpid(), signal.SIGBUS))
    batches = eval_batches(ImageDataset(root, "real", "train"), INPUT, 3, workers=1)
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


@pytest.mark.parametrize("size", [0, 4])
def test_evaluation_sees_the_same_sample_everywhere_and_each_image_once(size, root):
    images = ImageDataset(root, "real", "train")
    whole = torch.cat([views for views, _ in eval_batches(images, INPUT, 7)])
    sample = ImageDataset(root, "real", "train").sampled(size)
    rows = list(sample.eval_rows)
    assert len(rows) == (size or 7)
    assert pickle.loads(pickle.dumps(sample)).eval_rows == sample.eval_rows
    ((views, labels),) = eval_batches(sample, INPUT, 7)
    assert torch.equal(views, whole[rows])
    assert labels.tolist() == [LABELS[row] for row in rows]
    for world in (2, 3, 8):
        for rank in range(world):
            share = [views for views, _ in eval_batches(sample, INPUT, 2, rank, world)]
            expected = whole[rows[rank::world]]
            assert torch.equal(torch.cat([whole[:0], *(v for v in share if len(v))]), expected)
    assert list(images.sampled(7).eval_rows) == list(range(7))


def test_views_stay_decoded_up_to_a_limit(root, monkeypatch):
    decoded = []
    decode = ImageDataset.decode
    monkeypatch.setattr(
        ImageDataset, "decode", lambda self, row: (decoded.append(row), decode(self, row))[1]
    )
    monkeypatch.setattr(loaders, "_kept_views", {})
    monkeypatch.setattr(loaders, "KEPT_BYTES", 10 * 3 * 16**2)  # of 7 images, and 3
    for size, number in ((0, 7), (3, 3), (0, 0), (3, 0), (4, 4), (3, 0), (0, 7)):
        decoded.clear()
        list(eval_batches(ImageDataset(root, "real", "train").sampled(size), INPUT, 2))
        assert len(decoded) == number

    images = ImageDataset(root, "real", "train")
    squashed = ImageInput(16, INPUT.mean, INPUT.std, resize_mode="squash")
    first = next(eval_batches(images, INPUT, 7))[0]
    assert not torch.equal(next(eval_batches(images, squashed, 7))[0], first)


def test_a_loader_process_names_a_bad_image_in_one_line(tmp_path):
    images = dataset_of(tmp_path, [file_of(pixels(0)), b"no image"])
    sampler = StepSampler(2, 2, seed=0, steps=range(4))
    for workers in (0, 1):
        for batches in (
            eval_batches(images, INPUT, 2, workers=workers),
            train_batches(images, sampler, INPUT, DataConfig(workers=workers)),
        ):
            with pytest.raises(ConfigError, match=rf"^{tmp_path}/real/train: row 1 .*$") as caught:
                list(batches)
            assert "\n" not in str(caught.value)


@pytest.fixture
def decoded(monkeypatch):
    """Rows that this process decodes, with nothing in its memory."""
    rows, decode = [], ImageDataset.decode
    monkeypatch.setattr(
        ImageDataset, "decode", lambda self, row: rows.append(row) or decode(self, row)
    )
    monkeypatch.setattr(loaders, "KEEP_BYTES", 0)
    record_file._warn.cache_clear()
    return rows


def test_an_image_is_decoded_once_on_a_machine(root, tmp_path, decoded):
    """Whatever share or sample it is seen in first, by this process or by one of its loader."""
    folder = RecordFolder(tmp_path / "shared", 10**6, "decoded images")
    images = ImageDataset(root, "real", "train")
    expected = values(eval_batches(images, INPUT, 7))
    for read, number in (
        (eval_batches(images.sampled(3), INPUT, 2, decoded=folder), 3),
        (eval_batches(images, INPUT, 2, rank=0, world_size=2, decoded=folder), None),
        (eval_batches(images, INPUT, 2, rank=1, world_size=2, workers=2, decoded=folder), 0),
        (eval_samples(images, [[3, 1]], INPUT, decoded=folder), 0),
    ):
        decoded.clear()
        list(read)
        assert number is None or len(decoded) == number
    loaders._opened.cache_clear()  # as in another process
    decoded.clear()
    for workers in (0, 2):
        found = eval_batches(
            ImageDataset(root, "real", "train"), INPUT, 7, 0, 1, workers, decoded=folder
        )
        assert values(found) == expected
    assert decoded == []

    squashed = ImageInput(16, INPUT.mean, INPUT.std, resize_mode="squash")
    for other in (
        eval_batches(images, squashed, 7, decoded=folder),
        eval_batches(ImageDataset(root, "real", "train", crop_pct=0.5), INPUT, 7, decoded=folder),
    ):
        assert values(other) != expected


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_shared_is_decoded_again_and_said_once(
    workers, root, tmp_path, decoded, monkeypatch, caplog, capfd
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    images = ImageDataset(root, "real", "train")
    expected = values(eval_batches(images, INPUT, 3))
    for folder in (tmp_path / "a", tmp_path / "b"):
        shared = RecordFolder(folder, 10**6, "decoded images")
        for _ in range(2):
            assert values(eval_batches(images, INPUT, 3, 0, 1, workers, decoded=shared)) == expected
    said = "No space left on device" if workers == 0 else "loader processes cannot write them"
    assert [record.getMessage() for record in caplog.records] == [
        f"decoded images are not shared, but made by each trial: {said}"
    ]
    assert "not shared" not in capfd.readouterr().err
