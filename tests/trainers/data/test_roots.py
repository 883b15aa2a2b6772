"""Differences in the data that change their fingerprint, and others that do not."""

import shutil

import pyarrow.parquet as pq
import pytest

from tests.images import write_photo_and_sketch, write_split
from trainers.data.config import DataConfig
from trainers.data.roots import data_fingerprint, image_counts
from trainers.data.schema import part_path

CLASSES = ("ant", "bee")


@pytest.fixture
def root(tmp_path):
    return write_photo_and_sketch(tmp_path / "data", CLASSES)


def fingerprint(root):
    return data_fingerprint(DataConfig(root=str(root), id_domain="photo", ood_domains=("sketch",)))


def test_classes_images_and_their_number_are_part_of_it(root):
    before = fingerprint(root)
    assert before.keys() == {"photo/train", "photo/val", "sketch/val"}
    seen = {before["sketch/val"]}
    for classes, red in (
        (("bee", "ant"), 200),  # of the same lengths: no size in the file changes
        (("ant", "fly"), 200),
        (CLASSES, 10),
    ):
        write_split(root, "sketch", "val", classes, red=red)
        after = fingerprint(root)
        seen.add(after["sketch/val"])
        assert {**after, "sketch/val": before["sketch/val"]} == before
    shutil.copy(part_path(root, "photo", "val"), part_path(root, "sketch", "val", 1))
    assert len(seen | {fingerprint(root)["sketch/val"]}) == 5


def test_where_they_lie_who_wrote_them_and_what_else_is_said_of_them_do_not_matter(root):
    before = fingerprint(root)
    moved = root.rename(root.with_name("moved"))
    path = part_path(moved, "sketch", "val")
    table = pq.read_table(path)
    entries = {b"metadata": b'{"license": "CC0"}', b"written_by": b"another version"}
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | entries), path)
    assert fingerprint(moved) == before


def test_images_are_counted_over_all_files_of_a_split(root):
    write_split(root, "sketch", "val", CLASSES, part=1)
    data = DataConfig(root=str(root), id_domain="photo", ood_domains=("sketch",))
    assert image_counts(data, "val") == {"photo": 2, "sketch": 4}
