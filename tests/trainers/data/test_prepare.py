"""What `prepare` does with splits, bad images, kills, other data in its place, and duplicates."""

import csv
import io
import json
import math
import os
import threading
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.images import file_of
from trainers.data.dataset import ImageDataset
from trainers.data.prepare import BAD, Options, find_duplicates, prepare
from trainers.data.roots import DUPLICATES, remarks
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.data.sources import Source, carve, open_domain
from trainers.data.store import open_store
from trainers.errors import ConfigError

PNG = file_of(Image.new("RGB", (6, 6), "red"))


def put(path, data=PNG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def tree(tmp_path):
    """Two classes of ten images, which differ."""
    for number in range(20):
        image = Image.new("RGB", (6, 6), (number, 9, 9))
        put(tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png", file_of(image))
    return tmp_path / "pets"


def run(tree, data, **options):
    sources = {"pets": Source(path=str(tree))}
    (report,) = prepare(sources, open_store(data), Options(**options)).domains
    return report


def names(data, split):
    files = sorted((data / "pets" / split).glob("*.parquet"))
    return [row["image"]["path"] for file in files for row in pq.read_table(file).to_pylist()]


BAD_FILES = {
    "cut.png": (lambda path: path.write_bytes(PNG[:-30]), "truncated: image file is truncated"),
    "link.png": (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
    "pipe.png": (os.mkfifo, "cannot be read: not a file"),
    "sparse.png": (lambda path: sparse(path, 1 << 40), "too large: 1,099,511,627,776 bytes"),
}


def sparse(path, size):
    """A file that reads as zeros and takes no space."""
    path.touch()
    os.truncate(path, size)


def test_every_bad_file_is_listed_and_none_is_lost(tree, tmp_path):
    for name, (make, _) in BAD_FILES.items():
        make(tree / "cat" / name)
    (tree / "cat" / "notes.txt").write_text("x")
    for hidden in ("Thumbs.db", ".DS_Store"):  # of systems, which do not count
        (tree / "cat" / hidden).touch()
    report = run(tree, tmp_path / "data")
    assert (report.status, report.left_out) == ("done", 5)
    assert sum(report.images.values()) == 20
    with (tmp_path / "data" / "pets" / BAD).open() as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons.pop("cat/notes.txt") == "not an image by its name"
    assert reasons.keys() == {f"cat/{name}" for name in BAD_FILES}
    for name, (_, reason) in BAD_FILES.items():
        assert reasons[f"cat/{name}"].startswith(reason)
    assert run(tree, tmp_path / "data") == replace(report, status="kept")


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        (0.1, 0.2, {"train": 14, "val": 2, "test": 4}),
        (0.1, 0.0, {"train": 18, "val": 2}),
        (0.0, 0.0, {"train": 20}),
        (0.5, 0.3, {"train": 4, "val": 10, "test": 6}),
    ],
)
def test_splits_are_stratified_and_a_function_of_seed_and_name(val, test, expected, tree):
    def carved(seed=0):
        found = open_domain(Source(path=str(tree)), "pets")
        parts = carve(found, val=val, test=test, seed=seed, is_ood=False)
        return {split: part.rows["name"][:] for split, part in parts.items()}

    splits = carved()
    assert {split: len(part) for split, part in splits.items()} == expected
    assert len({name for part in splits.values() for name in part}) == 20
    for part in splits.values():
        assert sum(name.startswith("cat/") for name in part) == len(part) / 2
    assert carved() == splits
    if len(expected) == 3:
        assert carved(seed=5)["test"] != splits["test"]
        for name in splits["train"][2:]:
            (tree / name).unlink()
        assert {*carved()["test"]} <= {*splits["val"], *splits["test"]}


def test_a_class_of_few_images_keeps_one_to_train(tmp_path):
    for number, name in enumerate(("a", "b", "b", "c", "c", "c")):
        put(tmp_path / "few" / name / f"{number}.png")
    found = open_domain(Source(path=str(tmp_path / "few")), "few")
    splits = carve(found, val=0.01, test=0.99, seed=0, is_ood=False)
    labels = {split: sorted(part.rows["label"][:]) for split, part in splits.items()}
    assert labels == {"train": [0, 1, 2], "val": [1, 2], "test": [2]}


@pytest.mark.parametrize(
    ("there", "fractions", "expected"),
    [
        ("train", (0.1, 0.2), {"val", "test"}),
        ("train", (0.1, 0.0), {"val"}),
        ("train", (0.0, 0.2), {"test"}),
        ("train", (0.0, 0.0), {"val"}),
        ("train val", (0.1, 0.2), {"val", "test"}),
        ("train test", (0.0, 0.2), {"val", "test"}),
        ("train val test", (0.1, 0.2), {"val", "test"}),
        ("test", (0.1, 0.2), {"val", "test"}),
        ("val", (0.1, 0.2), {"val"}),
    ],
)
def test_nothing_of_an_ood_domain_is_for_training(there, fractions, expected, tmp_path):
    for split in there.split():
        for number in range(6):
            put(tmp_path / "street" / split / "cat" / f"{split}{number}.png")
    found = open_domain(Source(path=str(tmp_path / "street")), "street")
    splits = carve(found, val=fractions[0], test=fractions[1], seed=0, is_ood=True)
    assert splits.keys() == expected
    number = sum(len(part.rows) for part in splits.values())
    unread = there == "train val test"
    assert number == 6 * len(there.split()) - 6 * unread
    reasons = [why for part in splits.values() for _, why in part.left_out]
    assert any("nothing would read" in why for why in reasons) == unread


def test_folders_that_the_id_domain_lacks_and_paths_as_names_are_refused(tree, tmp_path):
    put(tree.parent / "street" / "unsorted" / "1.png")
    sources = {name: Source(path=str(tree.parent / name)) for name in ("pets", "street")}
    with pytest.raises(ConfigError, match=r"street/: the folders unsorted are no classes"):
        prepare(sources, open_store(tmp_path / "data"), Options(), id_domain="pets")
    for name in ("..", "a/b", ".hidden", ""):
        with pytest.raises(ConfigError, match="must be the name of a folder"):
            prepare({name: Source(path=str(tree))}, open_store(tmp_path / "data"), Options())
    assert not (tmp_path / "data").exists()


def test_what_is_there_already_is_kept_and_nothing_else_is_replaced(tree, tmp_path):
    data = tmp_path / "data"
    run(tree, data)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet")}
    assert run(tree, data).status == "kept"
    with pytest.raises(ConfigError, match=r"data/pets: .* with other options .*another dest"):
        run(tree, data, seed=1)
    (tree / "cat" / "new.png").write_bytes(PNG)
    with pytest.raises(ConfigError, match=r"data/pets: it was prepared from other images"):
        run(tree, data)
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet")}
    with pytest.raises(ConfigError, match="files that `prepare` did not make"):
        run(tree, tree.parent)  # onto the source


def test_data_of_0_2_are_never_prepared_again(tree, tmp_path):
    """Other splits would move test images into train."""
    data = tmp_path / "data"
    images = [LabelledImage(PNG, "a.png", 0), LabelledImage(PNG, "b.png", 1)]
    write_images(part_path(data, "pets", "train"), images, ("cat", "dog"))
    record = {"status": "done", "layout": "arrays", "versions": {"lipsum-tune": "0.2.0"}}
    (data / "pets" / "preparation.json").write_text(json.dumps(record))
    for status in ("done", "unfinished"):
        (data / "pets" / "preparation.json").write_text(json.dumps(record | {"status": status}))
        with pytest.raises(ConfigError, match=r"data/pets: it was prepared by version 0\.2"):
            run(tree, data)
    assert names(data, "train") == ["a.png", "b.png"]


def test_a_preparation_that_did_not_end_can_be_run_again(tree, tmp_path, monkeypatch):
    encoded, data = [], tmp_path / "data"

    def killed(image, **options):
        encoded.append(image)
        if len(encoded) == 16:  # of the split val
            raise KeyboardInterrupt
        return image

    with monkeypatch.context() as patch:
        patch.setattr("trainers.data.prepare.encode", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tree, data)
    with pytest.raises(ConfigError, match="its preparation is unfinished"):
        ImageDataset(data, "pets", "train")
    (data / "pets/train/part-00007.parquet").write_bytes(b"left by the kill")
    assert run(tree, data).images == {"train": 14, "val": 2, "test": 4}
    assert len(ImageDataset(data, "pets", "train")) == 14


def test_threads_decode_no_more_pixels_at_a_time_than_fit_in_memory(tmp_path, monkeypatch):
    """A PNG of 88 million pixels takes 1.35 GB, whatever the size of its file."""
    sides = (20, 30, 40, 90, 110)
    for number, side in enumerate(2 * sides):
        put(tmp_path / "x" / "cat" / f"{number}.png", file_of(Image.new("1", (side, side))))
    now, most, lock = [], [], threading.Lock()

    def encode(data, **options):
        pixels = math.prod(Image.open(io.BytesIO(data)).size)
        with lock:
            now.append(pixels)
            most.append((sum(now), len(now)))
        time.sleep(0.05)
        with lock:
            now.remove(pixels)
        return PNG

    monkeypatch.setattr("trainers.data.prepare.encode", encode)
    monkeypatch.setattr("trainers.data.prepare._PIXELS", 10_000)
    run(tmp_path / "x", tmp_path / "data")
    assert len(most) == 10
    assert all(pixels <= 10_000 or number == 1 for pixels, number in most)
    assert max(number for _, number in most) > 1


def test_the_same_images_in_two_splits_or_domains_are_counted_and_listed(tmp_path):
    first, second, third = (file_of(Image.new("RGB", (4, 4), (n, 0, 0))) for n in range(3))
    for domain, split, files in (
        ("a", "train", [first, first, second]),
        ("a", "test", [second]),
        ("b", "val", [third, first]),
    ):
        rows = [LabelledImage(data, f"{domain}{n}.png", 0) for n, data in enumerate(files)]
        write_images(part_path(tmp_path, domain, split), rows, ("cat",))
    find_duplicates(open_store(tmp_path), ["a", "b"])
    with (tmp_path / DUPLICATES).open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("a/train", "a/test", "a2.png", "a0.png"),
        ("a/train", "b/val", "a0.png", "b1.png"),
    ]
    parts = [("a", "train"), ("a", "test"), ("b", "val")]
    same, where = "1 image is byte for byte the same, see", tmp_path / DUPLICATES
    lines = [f"a/train and {other}: {same} {where}" for other in ("a/test", "b/val")]
    assert remarks(open_store(tmp_path), parts) == lines
    assert remarks(open_store(tmp_path), parts[:2]) == lines[:1]  # of a search without b
    find_duplicates(open_store(tmp_path), ["b"])
    assert remarks(open_store(tmp_path), parts) == []


def test_images_that_train_are_left_out_of_val_and_test_on_demand(tmp_path):
    """Those of a domain that is there already count, too."""
    first, second, third, fourth = (file_of(Image.new("RGB", (4, 4), (n, 0, 0))) for n in range(4))
    for path, data in {
        "a/train/cat/0": first, "a/train/cat/1": first, "a/train/cat/2": second,
        "a/val/cat/0": first, "a/val/cat/1": third, "a/test/cat/0": third, "a/test/cat/1": fourth,
        "b/test/cat/0": second, "b/test/cat/1": fourth, "b/test/cat/2": PNG,
    }.items():  # fmt: skip
        put(tmp_path / "images" / f"{path}.png", data)
    sources = {domain: Source(path=str(tmp_path / "images" / domain)) for domain in "ab"}
    data = open_store(tmp_path / "data")
    for domains in ("a", "ab"):
        chosen = {domain: sources[domain] for domain in domains}
        report = prepare(chosen, data, Options(drop_duplicates=True, val_fraction=0), id_domain="a")
    one, other = report.domains
    assert (one.status, one.images, one.left_out) == ("kept", {"train": 3, "val": 1, "test": 1}, 2)
    assert (other.status, other.images, other.left_out) == ("done", {"test": 1}, 2)
    listed = [
        "split,path,reason",
        "test,test/cat/0.png,the same bytes are in a/train",
        "test,test/cat/1.png,the same bytes are in a/test",
    ]
    assert (tmp_path / "data/b/bad.csv").read_text().splitlines() == listed
    assert report.remarks == []


def test_classes_that_a_domain_lacks_are_named(tmp_path):
    for domain, split, labels in (
        ("a", "train", range(9)),
        ("b", "val", (0, 1, 1)),
        ("b", "test", (8,)),
        ("c", "val", (4,)),
    ):
        rows = [LabelledImage(b"not decoded", str(n), label) for n, label in enumerate(labels)]
        write_images(part_path(tmp_path, domain, split), rows, tuple("rstuvwxyz"))
    parts = [(domain, split) for domain in "abc" for split in ("train", "val", "test")]
    assert remarks(open_store(tmp_path), parts) == [
        "b: no images of 6 of 9 classes: t, u, v, w, x and 1 more",
        "c: no images of 8 of 9 classes: r, s, t, u, w and 3 more",
    ]


def test_a_part_is_closed_before_memory_fills_up(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.data.prepare._ROWS", 4)
    monkeypatch.setattr("trainers.data.prepare._BATCH", 3)
    assert run(tree, tmp_path / "data").images["train"] == 14
    parts = sorted((tmp_path / "data/pets/train").glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [4, 4, 4, 2]
    monkeypatch.setattr("trainers.data.prepare._BYTES", 1)
    run(tree, tmp_path / "small")
    assert len(list((tmp_path / "small/pets/train").glob("*.parquet"))) == 14
    assert names(tmp_path / "small", "train") == names(tmp_path / "data", "train")


@pytest.mark.ray
def test_a_bucket_is_a_destination(tree, bucket):
    report = run(tree, f"{bucket}/data")
    assert len(ImageDataset(f"{bucket}/data", "pets", "train")) == report.images["train"] == 14
    assert run(tree, f"{bucket}/data").status == "kept"
