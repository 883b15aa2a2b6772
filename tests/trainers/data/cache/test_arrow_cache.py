import errno
import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from trainers.data.cache import arrow_cache as shard_cache
from trainers.data.cache.arrow_cache import CACHE_VARIABLE, check_limit, map_shards
from trainers.data.data_root import domain_files
from trainers.data.schema import arrow_schema
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError

GB = 10**9


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(number, *, size=10, first=0):
    """Rows whose bytes differ by their position."""
    return [
        {"label": i % 2, "path": f"{i}.jpg", "bytes": bytes([i % 256]) * (size + i % 3)}
        for i in range(first, first + number)
    ]


def write(store, path, content, *, plain=True):
    """A file as `prepare` writes it, or compressed and with a dictionary as other tools do."""
    schema = arrow_schema(["cat", "dog"], {"source": "here"})
    columns = {
        "image": [{"bytes": row["bytes"], "path": row["path"]} for row in content],
        "label": [row["label"] for row in content],
    }
    with store.write(path) as file:
        table = pa.Table.from_pydict(columns, schema)
        compression = "none" if plain else "zstd"
        pq.write_table(table, file, 4, compression=compression, use_dictionary=not plain)


def data_set(root, *sizes, domain="real"):
    """One file of each size in bytes, 10 rows each, and all their rows."""
    store, written = open_store(root), []
    for part, size in enumerate(sizes):
        content = rows(10, size=size // 10, first=10 * part)
        write(store, f"{domain}/train/part-{part:05d}.parquet", content)
        written += content
    return store, domain_files(store, domain, "train"), written


def mapped(store, files, limit_bytes=GB):
    return list(map_shards(store, files, limit_bytes=limit_bytes).values())


def cached(store, files, limit_bytes=GB):
    return list(map_shards(store, files, limit_bytes=limit_bytes))


def content(tables):
    return [row for table in tables for row in table.to_pylist()]


def inodes(paths):
    return [path.stat().st_ino for path in paths]


def test_rows_of_several_files_and_batches_keep_their_order(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "_BATCH", 3)
    store, files, written = data_set(tmp_path / "data", 100, 200)
    tables = mapped(store, files)
    assert content(tables) == written
    assert [table["bytes"].num_chunks for table in tables] == [4, 4]
    assert tables[0].schema.metadata[b"class_names"] == b'["cat", "dog"]'


def test_only_files_that_were_written_are_converted_again(cache, tmp_path):
    store, files, _ = data_set(tmp_path / "data", 100, 100)
    before = cached(store, files)
    held, old = mapped(store, files), inodes(before)
    assert inodes(cached(store, files)) == old
    write(store, "real/train/part-00001.parquet", rows(10, first=50))
    files = domain_files(store, "real", "train")
    after = cached(store, files)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert content(mapped(store, files))[10:] == rows(10, first=50)
    assert content(held)[10:] == rows(10, first=10)


HOLD_THE_LOCK = """
import sys
from trainers.data.cache import arrow_cache
from trainers.data.data_root import domain_files
from trainers.data.storage import open_store
flat = arrow_cache._flat
def held(*arguments):
    print("holding", flush=True)
    sys.stdin.readline()
    return flat(*arguments)
arrow_cache._flat = held
store = open_store(sys.argv[1])
arrow_cache.map_shards(store, domain_files(store, "real", "train"), limit_bytes=10**9)
"""


@contextmanager
def converting(root):
    """Another process, which has begun an Arrow file and goes on once it gets a line."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        yield holder
        if holder.poll() is None:
            holder.communicate("go\n")


@pytest.mark.parametrize("other", ["data", "other"])
def test_one_process_fills_the_cache_and_others_wait(cache, tmp_path, monkeypatch, caplog, other):
    data_set(tmp_path / "other", 1000)
    store, files, written = data_set(tmp_path / "data", 1000)
    warning = shard_cache.logger.warning
    with converting(tmp_path / other) as holder:
        monkeypatch.setattr(
            shard_cache.logger,
            "warning",
            lambda *text: (warning(*text), holder.communicate("go\n"))[0],
        )
        if other == "data":
            monkeypatch.setattr(shard_cache, "_convert_all", lambda *_: pytest.fail("twice"))
        assert content(mapped(store, files)) == written
    what = f"real/train of {tmp_path}/data"
    assert caplog.messages == [f"{what}: waiting until another process has filled the cache"]


def test_files_unused_for_longest_make_room(cache, tmp_path):
    sets = [data_set(tmp_path / name, 100_000) for name in ("a", "b", "c")]
    paths, tables = [], []
    for store, files, _ in sets[:2]:
        paths += cached(store, files, limit_bytes=250_000)
        tables.append(mapped(store, files, 250_000))
    os.utime(paths[0], ns=(1, 1))
    os.utime(paths[1], ns=(2, 2))
    cached(*sets[0][:2], limit_bytes=250_000)  # used once more, after the other
    paths += cached(*sets[2][:2], limit_bytes=250_000)
    assert [path.exists() for path in paths] == [True, False, True]
    assert content(tables[1]) == sets[1][2]
    assert content(mapped(*sets[1][:2], 250_000)) == sets[1][2]


def test_files_of_the_same_data_set_stay_and_count(cache, tmp_path):
    (older,) = cached(*data_set(tmp_path / "older", 100_000)[:2])
    store, files, written = data_set(tmp_path / "data", 100_000, 100_000)
    (first,) = cached(store, files[:1])
    os.utime(first, ns=(1, 1))  # unused for longer than `older`
    before = first.stat().st_ino
    assert content(mapped(store, files, 250_000)) == written
    assert (first.stat().st_ino, older.exists()) == (before, False)


def test_images_that_exceed_the_limit_are_refused_first(cache, tmp_path):
    other = cached(*data_set(tmp_path / "other", 100_000)[:2])
    store, files, _ = data_set(tmp_path / "data", 1_000_000, 1_000_000)
    with pytest.raises(ConfigError) as caught:
        cached(store, files, limit_bytes=10**6)
    assert (caught.value.key, caught.value.value) == ("data.cache_gb", 0.001)
    assert f"{store.url} (real/train) need 0.002 GB" in caught.value.problem
    assert list(cache.glob("*.arrow")) == other
    with pytest.raises(ConfigError, match=r"need 0\.002 GB"):
        check_limit(store, files, 2 * 10**6, limit_bytes=10**6)
    check_limit(store, files, 2 * 10**6, limit_bytes=3 * 10**6)


def test_images_count_with_their_uncompressed_size(cache, tmp_path):
    store = open_store(tmp_path)
    write(store, "real/train/0.parquet", rows(20, size=100_000), plain=False)
    files = domain_files(store, "real", "train")
    assert files[0].size < 20_000
    with pytest.raises(ConfigError, match=r"\(real/train\) need 0\.002 GB"):
        cached(store, files, limit_bytes=10**6)


def test_equal_images_that_a_file_holds_once_are_whole_in_the_cache(cache, tmp_path):
    # Small images, so that what Arrow writes beside each batch exceeds a writer's buffer.
    store = open_store(tmp_path)
    same = [{"label": 0, "path": "x", "bytes": bytes(30)}] * 2000
    write(store, "real/train/0.parquet", same, plain=False)
    assert content(mapped(store, domain_files(store, "real", "train"))) == same


def test_files_that_are_cached_already_count_too(cache, tmp_path):
    store, files, _ = data_set(tmp_path / "data", 1_000_000, 1_000_000)
    cached(store, files[:1], limit_bytes=1_500_000)
    with pytest.raises(ConfigError, match=r"need 0\.002 GB"):
        cached(store, files, limit_bytes=1_500_000)


@pytest.mark.parametrize(("free", "is_removed"), [(1500, False), (400_000, True)])
def test_a_full_disk_is_reported_before_files_are_removed_in_vain(
    cache, tmp_path, monkeypatch, free, is_removed
):
    (old,) = cached(*data_set(tmp_path / "old", 700_000)[:2])
    usage = type("Usage", (), {"free": free})  # also after the removal: it may still be mapped
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    store, files, _ = data_set(tmp_path / "data", 1_000_000)
    with pytest.raises(ConfigError, match=r"0.001 GB more are needed, and the disk has"):
        cached(store, files)
    assert old.exists() != is_removed


def test_a_long_conversion_is_logged(cache, tmp_path, monkeypatch, caplog):
    store, files, _ = data_set(tmp_path / "small", 1000)
    cached(store, files)
    assert caplog.messages == []
    monkeypatch.setattr(shard_cache, "_LARGE", 10**6)
    monkeypatch.setattr(shard_cache, "_LOG_EVERY_S", 0.0)
    store, files, _ = data_set(tmp_path / "large", 1_000_000, 1_000_000)
    cached(store, files)
    what = f"caching real/train of {store.url}"
    assert caplog.messages == [
        f"{what}: 0.002 GB in {cache}",
        f"{what}: 1 of 2 files",
        f"{what}: 2 of 2 files",
    ]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(cache, tmp_path, monkeypatch, error):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    store, files, _ = data_set(tmp_path / "data", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refused)
        with pytest.raises(ConfigError, match=os.strerror(error)) as caught:
            cached(store, files)
    assert caught.value.source == str(cache)
    assert CACHE_VARIABLE in str(caught.value.hint)


@pytest.mark.parametrize("again", [False, True])
def test_a_torn_file_is_made_again_unless_another_process_has(cache, tmp_path, monkeypatch, again):
    store, files, written = data_set(tmp_path / "data", 100_000)
    (path,) = cached(store, files)
    whole = path.read_bytes()
    path.write_bytes(whole[:300])

    class Meanwhile(filelock.FileLock):
        """A lock for which another process went first."""

        def acquire(self, *args, **kwargs):
            path.write_bytes(whole)
            return super().acquire(*args, **kwargs)

    if again:
        monkeypatch.setattr(filelock, "FileLock", Meanwhile)
        monkeypatch.setattr(shard_cache, "_convert_all", lambda *_: pytest.fail("made twice"))
    assert content(mapped(store, files)) == written


def test_a_disk_that_fills_up_is_named_and_nothing_left(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache, "_flat", full)
    store, files, _ = data_set(tmp_path / "data", 1000)
    with pytest.raises(ConfigError, match=f"{cache}: the cache of images: No space left"):
        cached(store, files)
    assert [path.name for path in cache.glob("*.*")] == []


def test_a_killed_conversion_is_cleaned_up(cache, tmp_path):
    store, files, written = data_set(tmp_path / "data", 500_000)
    with converting(tmp_path / "data") as killed:
        killed.kill()
        killed.wait()
    assert len(list(cache.glob("*.unfinished"))) == 1
    assert content(mapped(store, files)) == written
    assert [path.suffix for path in cache.glob("*.*")] == [".arrow"]


def test_a_damaged_parquet_file_is_named_and_leaves_nothing(cache, tmp_path):
    store, _, _ = data_set(tmp_path / "data", 100_000)
    path = store.local_path("real/train/part-00000.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"part-00000.parquet: not a whole Parquet file"):
        cached(store, domain_files(store, "real", "train"))
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(ConfigError, match=r"part-00000.parquet: cannot be read"):
        cached(store, domain_files(store, "real", "train"))
    assert list(cache.glob("*.*")) == []


def test_mapped_shards_hold_neither_file_descriptors_nor_memory(cache, tmp_path):
    store, files, written = data_set(tmp_path / "data", *[100_000] * 5)
    cached(store, files)
    descriptors, allocated = len(list(Path("/proc/self/fd").iterdir())), pa.total_allocated_bytes()
    tables = mapped(store, files)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert pa.total_allocated_bytes() == allocated
    assert content(tables) == written


def test_a_file_system_of_fsspec_is_read_through_the_cache(cache):
    store, files, written = data_set("memory://some/data", 100, 100)
    assert content(mapped(store, files)) == written
    write(store, "real/train/part-00000.parquet", rows(10, size=10, first=70))  # of equal size
    files = domain_files(store, "real", "train")
    assert content(mapped(store, files))[:10] == rows(10, first=70)


def test_buckets_of_one_name_on_two_servers_are_told_apart(monkeypatch):
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
