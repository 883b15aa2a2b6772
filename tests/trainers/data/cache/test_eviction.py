"""The limits of the cache, by the sizes of its files; and its log messages."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from trainers.data.cache import arrow_cache as shard_cache
from trainers.data.cache.arrow_cache import CACHE_VARIABLE, cached_shards, map_shard
from trainers.data.cache.room import Room
from trainers.data.data_root import domain_files
from trainers.data.schema import arrow_schema
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError

GB = 10**9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "_BATCH", 4)
    return tmp_path / "cache"


def data_set(root: Path, *parts: Sequence[bytes]) -> tuple[Store, list[fs.FileInfo]]:
    """Files of images, compressed and with a dictionary, as other tools write them."""
    folder = root / "real" / "train"
    folder.mkdir(parents=True)
    for number, images in enumerate(parts):
        columns = {
            "image": [{"bytes": data, "path": "x"} for data in images],
            "label": [0] * len(images),
        }
        table = pa.Table.from_pydict(columns, arrow_schema(["cat"], {}))
        pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd")
    store = open_store(root)
    return store, domain_files(store, "real", "train")


def different(number: int) -> list[bytes]:
    return [bytes([n]) * 100_000 for n in range(number)]


def test_images_count_with_their_uncompressed_size(cache: Path, tmp_path: Path) -> None:
    store, files = data_set(tmp_path / "data", different(20))
    assert files[0].size < 20_000
    with pytest.raises(ConfigError, match=r"\(real/train\) need 0\.002 GB"):
        cached_shards(store, files, limit_bytes=10**6)
    assert [path.name for path in cache.iterdir() if not path.name.startswith("lock")] == []


def test_equal_images_that_a_file_holds_once_count_too(cache: Path, tmp_path: Path) -> None:
    store, files = data_set(tmp_path / "data", [bytes(100_000)] * 40)
    with pytest.raises(ConfigError, match="need more than that on each"):
        cached_shards(store, files, limit_bytes=10**6)
    assert [path.name for path in cache.iterdir() if not path.name.startswith("lock")] == []
    (path,) = cached_shards(store, files, limit_bytes=5 * 10**6)
    assert 4_000_000 < path.stat().st_size < 4_010_000


def test_making_room_cuts_nothing_off(cache: Path, tmp_path: Path) -> None:
    # Small images, so that what Arrow writes beside each batch exceeds a writer's buffer.
    images = [bytes([number % 2]) * 30 for number in range(2000)]
    (path,) = cached_shards(*data_set(tmp_path / "data", images), limit_bytes=GB)
    assert map_shard(path)["bytes"].to_pylist() == images


def test_unforeseen_bytes_make_room(cache: Path, tmp_path: Path) -> None:
    old = cached_shards(*data_set(tmp_path / "a", different(10), different(10)), limit_bytes=GB)
    os.utime(old[0], ns=(2, 2))
    os.utime(old[1], ns=(1, 1))
    store, files = data_set(tmp_path / "b", [bytes(100_000)] * 15)
    cached_shards(store, files, limit_bytes=2_900_000)
    assert [path.exists() for path in old] == [True, False]
    assert sum(path.stat().st_size for path in cache.glob("*.arrow")) < 2_900_000


def test_a_full_disk_is_reported_before_files_are_removed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = cached_shards(*data_set(tmp_path / "old", different(5)), limit_bytes=GB)
    usage = type("Usage", (), {"free": 1500})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    store, files = data_set(tmp_path / "data", different(20))
    message = (
        f"{cache}: the cache of images: 0.002 GB more are needed, and the disk has 1.5e-06 GB "
        "free and 0.0005.* GB of other images"
    )
    with pytest.raises(ConfigError, match=message):
        cached_shards(store, files, limit_bytes=GB)
    assert old.exists()


def test_removed_files_that_are_still_mapped_free_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.arrow").write_bytes(bytes(1000))
    usage = type("Usage", (), {"free": 500})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"the disk has 5e-07 GB free$") as full:
        Room(tmp_path, "x", keep=[], limit=GB).take({tmp_path / "new.x.unfinished": 1200})
    assert full.value.errno == errno.ENOSPC


def test_a_limit_that_cannot_be_kept_removes_no_file(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.arrow").write_bytes(bytes(1000))
    room = Room(tmp_path, "x", keep=[tmp_path / "a.arrow"], limit=3500)
    new = room.unfinished(tmp_path / "d.arrow")
    assert not room.take({new: 2501})
    assert len(list(tmp_path.glob("*.arrow"))) == 3
    assert room.take({new: 2500})
    assert [path.name for path in tmp_path.glob("*.arrow")] == ["a.arrow"]


def test_files_that_are_cached_already_count_too(cache: Path, tmp_path: Path) -> None:
    store, files = data_set(tmp_path / "data", different(10), different(10))
    cached_shards(store, files[:1], limit_bytes=1_500_000)
    with pytest.raises(ConfigError, match=r"need 0\.002 GB"):
        cached_shards(store, files, limit_bytes=1_500_000)


def test_a_long_conversion_is_logged(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, files = data_set(tmp_path / "small", different(2))
    cached_shards(store, files, limit_bytes=GB)
    assert caplog.messages == []
    monkeypatch.setattr(shard_cache, "_LARGE", 10**6)
    monkeypatch.setattr(shard_cache, "_LOG_EVERY_S", 0.0)
    store, files = data_set(tmp_path / "large", different(10), different(10))
    cached_shards(store, files, limit_bytes=GB)
    what = f"caching real/train of {store.url}"
    assert caplog.messages == [
        f"{what}: 0.002 GB in {cache}",
        f"{what}: 1 of 2 files",
        f"{what}: 2 of 2 files",
    ]


def test_buckets_of_one_name_on_two_servers_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    file = fs.FileInfo("bucket/data/x.parquet", fs.FileType.File, mtime_ns=10**18, size=7)
    s3 = fs.S3FileSystem(anonymous=True, region="us-east-1")
    query = "endpoint_override=http%3A%2F%2F127.0.0.1%3A"
    urls = ("s3://bucket/data", f"s3://bucket/data?{query}1", f"s3://bucket/data?{query}2")
    stores = [Store(s3, "bucket/data", url) for url in urls]
    keys = [shard_cache._key(store, file) for store in stores]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:3")
    keys.append(shard_cache._key(stores[0], file))
    assert len(set(keys)) == 4
    assert shard_cache._key(stores[1], file) == keys[1]  # the URL's own goes before
