"""What is a file's own fault, and what is its source's."""

import errno
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainers.data.formats.more_trees import pixels
from tests.trainers.data.formats.troubled import troubled
from trainers.data.formats import retry
from trainers.data.formats.readers import (
    ArraySource,
    FileSource,
    ParquetSource,
    RangeSource,
    read_sources,
)
from trainers.data.formats.retry import SourceLost, require_source
from trainers.data.storage import open_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0, 0.0))
    (tmp_path / "one.jpg").write_bytes(b"one")
    (tmp_path / "x.tar").write_bytes(b"....two")
    np.save(tmp_path / "y.npy", pixels(2))
    pq.write_table(pa.table({"jpg": [b"p0", b"p1"]}), tmp_path / "z.parquet")
    return troubled(tmp_path)


SOURCES = [
    FileSource("one.jpg"),
    RangeSource("x.tar", 4, 3),
    ArraySource("y.npy", 1),
    ParquetSource("z.parquet", 1, "jpg"),
]
OUTAGES = [
    OSError(errno.EIO, "Input/output error"),
    TimeoutError("timed out"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError(errno.ESTALE, "Stale file handle"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_an_outage_that_passes_is_waited_for(store, source):
    (expected,) = read_sources(store, [source])
    assert isinstance(expected, bytes)
    store.failures.extend(OUTAGES[:3])
    assert list(read_sources(store, [source])) == [expected]
    assert store.failures == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_an_outage_that_lasts_is_no_fault_of_an_image(store, source):
    store.failures.extend(OUTAGES * 3)
    with pytest.raises(SourceLost, match=rf"{source.path}: the source does not answer: ") as lost:
        list(read_sources(store, [source]))
    assert "\n" not in str(lost.value)


def test_a_file_that_is_gone_closed_to_us_or_broken_is_not_asked_for_again(store):
    store.local_path("folder.jpg").mkdir()
    store.local_path("loop.jpg").symlink_to("loop.jpg")
    store.local_path("broken.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    gone = ["gone.jpg", "one.jpg/x.jpg", "folder.jpg", "loop.jpg", "n" * 300, "nul\0.jpg"]
    found = list(read_sources(store, [FileSource(path) for path in gone]))
    assert all(isinstance(error, OSError) for error in found)
    assert [store.asked[path] for path in gone] == [1] * len(gone)
    store.failures.append(PermissionError(errno.EACCES, "Permission denied"))
    (denied,) = read_sources(store, [FileSource("one.jpg")])
    assert isinstance(denied, PermissionError)
    (broken,) = read_sources(store, [ParquetSource("broken.parquet", 0, "jpg")])
    assert isinstance(broken, OSError)


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_what_stays_unreadable_on_a_disk_that_answers_is_one_files(store, error):
    store.local_path("two.jpg").write_bytes(b"two")
    store.failures.extend(OSError(error, os.strerror(error)) for _ in range(4))
    bad, good = read_sources(store, [FileSource("one.jpg"), FileSource("two.jpg")])
    assert isinstance(bad, OSError)
    assert (bad.errno, good) == (error, b"two")
    assert store.asked == {"one.jpg": 4, "two.jpg": 1}


def test_a_disk_that_went_with_its_files_is_lost(store, tmp_path):
    gone = troubled(tmp_path / "away")
    gone.failures.extend(OSError(errno.EIO, "Input/output error") for _ in range(4))
    with pytest.raises(SourceLost, match=r"away/one.jpg: the source does not answer: .*Input"):
        list(read_sources(gone, [FileSource("one.jpg")]))


def test_too_many_open_files_are_not_blamed_on_the_source(store):
    store.failures.extend(OSError(errno.EMFILE, "Too many open files") for _ in range(4))
    with pytest.raises(SourceLost, match=r"one.jpg: too many open files .*`ulimit -n`"):
        list(read_sources(store, [FileSource("one.jpg")]))


def test_a_bucket_that_refuses_the_keys_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES_S", (0.0,))
    bucket = troubled(f"memory://{tmp_path.name}")
    with bucket.write("one.jpg") as file:
        file.write(b"one")
    bucket.failures.extend([PermissionError("The provided token has expired.")] * 2)
    with pytest.raises(SourceLost, match=r"one.jpg: .*token has expired"):
        list(read_sources(bucket, [FileSource("one.jpg")]))


def test_a_source_that_is_not_there_or_not_mounted_is_lost(tmp_path):
    with pytest.raises(
        SourceLost, match=rf"nowhere: not found on the machine {os.uname().nodename}: "
    ):
        require_source(open_store(tmp_path / "nowhere"))
    (tmp_path / "mount").mkdir()
    with pytest.raises(SourceLost, match="a disk that every machine shares"):
        require_source(open_store(tmp_path / "mount"))
    require_source(open_store(tmp_path))
