"""Shards: written, read back, recognised when finished, and made anew when anything differs."""

import errno
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.images import file_of
from trainers.data.encoding import EncodeOptions
from trainers.data.formats import retry
from trainers.data.formats.index import Example, Finding, Index
from trainers.data.formats.readers import FileSource
from trainers.data.formats.retry import SourceLost
from trainers.data.schema import read_header
from trainers.data.shards import finished, make_shard, plan_shards, up_to_date, write_shard
from trainers.data.storage import Store, open_store

OPTIONS = EncodeOptions()
CLASSES = ("cat", "dog", "The_Eiffel_Tower")


def image(colour):
    return file_of(Image.new("RGB", (12, 10), colour))


@pytest.fixture
def source(tmp_path):
    """Seven images in three classes: `0.png` to `6.png`."""
    folder = tmp_path / "source"
    folder.mkdir()
    colours = ("red", "green", "blue", "white", "black", "yellow", "grey")
    for number, colour in enumerate(colours):
        (folder / f"{number}.png").write_bytes(image(colour))
    return open_store(folder)


@pytest.fixture
def destination(tmp_path):
    return open_store(tmp_path / "data")


def index_of(labels=(0, 1, 2, 0, 1, 2, 0), **more):
    examples = tuple(
        Example(FileSource(f"{number}.png"), f"{number}.png", label)
        for number, label in enumerate(labels)
    )
    listed = Index("real", "train", CLASSES, examples, metadata={"layout": "folders"})
    return replace(listed, **more)


(SHARD,) = plan_shards(index_of(), OPTIONS, 10)


def test_a_split_is_cut_into_shards_in_order():
    shards = plan_shards(index_of(), OPTIONS, 3)
    assert [len(shard.examples) for shard in shards] == [3, 3, 1]
    assert [e for shard in shards for e in shard.examples] == list(index_of().examples)
    assert [shard.path for shard in shards] == [
        f"real/train/part-0000{i}.parquet" for i in range(3)
    ]
    assert plan_shards(index_of(), OPTIONS, 3) == shards
    assert plan_shards(index_of(()), OPTIONS, 3) == []


def test_the_digest_changes_with_everything_that_goes_in():
    def digests(of, options=OPTIONS):
        return tuple(shard.digest for shard in plan_shards(of, options, 3))

    same = digests(index_of())
    assert digests(index_of(findings=(Finding("list.txt", "duplicate"),))) == same
    for other in (
        digests(index_of(class_names=("cat", "dog", "tower"))),
        digests(index_of(metadata={"layout": "webdataset"})),
        digests(index_of(border=2)),
        digests(index_of(domain="painting")),
        digests(index_of(split="val")),
        digests(index_of(), EncodeOptions(resize=8)),
        digests(index_of(), EncodeOptions(quality=90)),
    ):
        assert len({*same, *other}) == 6
    one_label = digests(index_of((0, 1, 2, 0, 1, 2, 1)))
    assert (one_label[:2], one_label[2] != same[2]) == (same[:2], True)


def test_the_digest_is_that_of_earlier_versions():
    """Or `prepare` would make finished data sets again."""
    assert SHARD.digest == "2a905aecfbb85be6d035443ae36fdcd4d44a0074b5f9b94097534e98b0aaf581"


def test_a_shard_reads_back_as_it_was_indexed(source, destination):
    report = write_shard(source, destination, SHARD, OPTIONS)
    file = destination.local_path(SHARD.path)
    assert (report.rows, report.bytes, report.findings) == (7, file.stat().st_size, ())
    table = pq.read_table(file)
    assert table.column_names == ["image", "label"]
    assert table["label"].to_pylist() == [0, 1, 2, 0, 1, 2, 0]
    for number, image in enumerate(table["image"].to_pylist()):
        assert image["path"] == f"{number}.png"
        assert image["bytes"] == (source.local_path(f"{number}.png")).read_bytes()
    header = read_header(destination, SHARD.path)
    assert (header.class_names, header.rows) == (CLASSES, 7)
    assert header.metadata["layout"] == "folders"
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    assert (column.path_in_schema, column.compression) == ("image.bytes", "UNCOMPRESSED")
    assert not [e for e in column.encodings if "DICTIONARY" in e]


def test_many_images_are_written_in_row_groups(source, destination):
    examples = tuple(replace(index_of().examples[i % 7], path=f"{i}") for i in range(600))
    (shard,) = plan_shards(index_of(examples=examples), OPTIONS, 1000)
    write_shard(source, destination, shard, OPTIONS)
    parquet = pq.ParquetFile(destination.local_path(shard.path))
    groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    assert groups == [256, 256, 88]
    assert parquet.read(["label"])["label"].to_pylist() == [e.label for e in examples]


def test_bad_images_are_left_out_and_changes_are_listed(source, destination):
    (source.local_path() / "1.png").write_bytes(b"")
    (source.local_path() / "2.png").write_bytes(image("blue")[:50])
    (source.local_path() / "3.png").unlink()
    rgba = np.full((4, 4, 4), 51, np.uint8)
    Image.fromarray(rgba).save(source.local_path() / "5.png")
    (shard,) = plan_shards(index_of((0, 1, 2, 0, 3, 2, -1)), OPTIONS, 10)
    report = write_shard(source, destination, shard, OPTIONS)
    bad = {f.path: (f.kind, f.detail) for f in report.findings if f.bad}
    assert {path: kind for path, (kind, _) in bad.items()} == {
        "1.png": "empty",
        "2.png": "truncated",
        "3.png": "unreadable",
        "4.png": "label out of range",
        "6.png": "label out of range",
    }
    assert bad["4.png"][1] == "3 of 3 classes"
    assert [f for f in report.findings if not f.bad] == [Finding("5.png", "transparency")]
    table = pq.read_table(destination.local_path(shard.path))
    assert [image["path"] for image in table["image"].to_pylist()] == ["0.png", "5.png"]
    assert table["label"].to_pylist() == [0, 2]
    assert report.rows == 2


def test_a_shard_without_a_good_image_is_an_empty_table(source, destination):
    (shard,) = plan_shards(index_of((7,)), OPTIONS, 10)
    assert write_shard(source, destination, shard, OPTIONS).rows == 0
    assert pq.read_table(destination.local_path(shard.path)).num_rows == 0


def test_requested_changes_are_not_findings(source, destination):
    options = EncodeOptions(resize=6)
    (shard,) = plan_shards(index_of(border=1), options, 10)
    report = write_shard(source, destination, shard, options)
    assert report.findings == ()
    data = pq.read_table(destination.local_path(shard.path))["image"][0].as_py()["bytes"]
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (7, 6)  # 10 x 8 within the border


def test_a_finished_shard_is_reused_with_its_findings(source, destination):
    (source.local_path() / "1.png").write_bytes(b"")
    assert finished(destination, SHARD) is None
    written = make_shard(source, destination, SHARD, OPTIONS)
    file = destination.local_path(SHARD.path)
    before = file.stat()
    again = make_shard(source, destination, SHARD, OPTIONS)
    assert (again, again.reused, written.reused) == (written, True, False)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (other,) = plan_shards(index_of(), EncodeOptions(resize=4), 10)
    assert finished(destination, other) is None
    file.write_bytes(file.read_bytes()[:-20])  # cut off, as on a bucket after a crash
    assert finished(destination, SHARD) is None


def test_a_shard_is_made_again_once_a_bad_image_is_repaired(source, destination):
    (source.local_path() / "1.png").write_bytes(b"")
    assert make_shard(source, destination, SHARD, OPTIONS).rows == 6
    (source.local_path() / "1.png").write_bytes(image("pink"))
    report = make_shard(source, destination, SHARD, OPTIONS)
    assert (report.rows, report.findings, report.reused) == (7, (), False)


def test_a_shard_is_made_again_if_an_image_changes_not_if_it_goes(source, destination):
    assert make_shard(source, destination, SHARD, OPTIONS).rows == 7
    (source.local_path() / "1.png").write_bytes(image("pink") + b"1")
    assert up_to_date(source, destination, SHARD, OPTIONS) is None
    assert not make_shard(source, destination, SHARD, OPTIONS).reused
    table = pq.read_table(destination.local_path(SHARD.path))
    assert table["image"][1].as_py()["bytes"] == image("pink") + b"1"
    (source.local_path() / "1.png").unlink()
    kept = make_shard(source, destination, SHARD, OPTIONS)
    assert (kept.reused, kept.rows) == (True, 7)


def time_out(_):
    raise OSError(errno.ETIMEDOUT, "Connection timed out")


def disappear(source):
    for file in source.local_path().iterdir():
        file.unlink()


def interrupt(_):
    raise KeyboardInterrupt


def failing(source, fail):
    """The same store, which calls a function before it opens `3.png`."""

    class Failing(Store):
        def open(self, path):
            if path == "3.png":
                fail(self)
            return super().open(path)

    return Failing(**vars(source))


@pytest.mark.parametrize(
    ("fail", "problem"),
    [
        (time_out, r"source/3.png: the source does not answer: .*timed"),
        (disappear, "not found on the machine"),
    ],
)
def test_a_source_that_fails_in_the_middle_makes_no_shard(
    source, destination, monkeypatch, fail, problem
):
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
    with pytest.raises(SourceLost, match=problem):
        make_shard(failing(source, fail), destination, SHARD, OPTIONS)
    assert not destination.info(SHARD.path).is_file


def test_a_file_of_an_interrupted_shard_is_not_finished(source, tmp_path):
    bucket = open_store(f"memory://{tmp_path.name}")  # publishes what was written before an error
    with pytest.raises(KeyboardInterrupt):
        write_shard(failing(source, interrupt), bucket, SHARD, OPTIONS)
    with bucket.open(SHARD.path) as file:
        assert pq.read_table(file).num_rows == 0
    assert finished(bucket, SHARD) is None
    assert make_shard(source, bucket, SHARD, OPTIONS).rows == 7


def test_a_destination_that_cannot_be_written_to_is_named(source, destination):
    Path(destination.root).write_text("a file where the folder should be")
    with pytest.raises(OSError, match=str(destination.url)) as caught:
        write_shard(source, destination, SHARD, OPTIONS)
    assert "Errno None" not in str(caught.value)
