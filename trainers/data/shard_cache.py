"""Parquet shards as memory-mapped Arrow files on this machine.

Parquet is what is stored and moved; a picture in the middle of it costs a whole row group. So each
machine keeps the shards that it reads once more, as uncompressed Arrow IPC files: there a picture
is one small read, and all trials and their decoding processes share the pages that the system has
cached. The folder must be on a disk of the machine's own, not on one that machines share.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import filelock
import platformdirs
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs, ipc

from trainers.data.schema import header_of, open_parquet
from trainers.data.storage import Store
from trainers.errors import ConfigError

CACHE_VARIABLE = "LIPSUM_TUNE_ARROW_CACHE"
"""Environment variable that names another folder for the cache, on each machine its own."""

FORMAT = 1
"""Raised when what an Arrow file holds changes: files of older formats are then no longer used."""

COLUMNS = pa.schema([("label", pa.int64()), ("path", pa.string()), ("bytes", pa.large_binary())])
"""Of an Arrow file. Pictures come last: all else of a batch then lies on one page or two."""

_NO_PLACE = {
    *(errno.ENOSPC, errno.EDQUOT),  # full
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # not ours to write to
    *(errno.ENOTDIR, errno.EEXIST),  # a file where the folder should be
}
_BATCH = 256  # rows
_ADVICE = f" (${CACHE_VARIABLE} names another folder)"
_CONVERSIONS = 4  # files at a time: buckets answer slowly, but answer many


def cache_folder() -> Path:
    """Where this machine keeps its Arrow files."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("lipsum-tune") / "arrow"


def cached_shards(store: Store, files: Sequence[fs.FileInfo], *, limit_bytes: int) -> list[Path]:
    """The Arrow files of some Parquet files, in their order, made where they are not there yet.

    Of the processes of a machine one converts, and the others wait for it. To make room, the files
    that were not used for the longest are removed; whoever has one of them mapped keeps it.

    Args:
        store: where the Parquet files lie.
        files: as the store lists them.
        limit_bytes: of all files of the cache together, as `data.cache_gb` says.

    Raises:
        ConfigError: these files alone exceed the limit or the disk, or one is no such Parquet.
    """
    folder = cache_folder()
    targets = [folder / f"{_key(store, file)}.arrow" for file in files]
    try:
        if not _touch(targets):
            check_limit(store, files, limit_bytes=limit_bytes)
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / "lock"):
                _convert_missing(store, files, targets, limit_bytes)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        reason = os.strerror(error.errno)
        raise ConfigError(f"{folder}: the cache of pictures: {reason}{_ADVICE}") from None
    return targets


def map_shard(path: Path) -> pa.Table:
    """The rows of an Arrow file, with the columns of `COLUMNS`; read only as they are looked at.

    The mapping outlives the open file, so a data set of many shards needs no descriptors.
    """
    with pa.memory_map(str(path)) as source:
        return ipc.open_file(source).read_all()


def check_limit(store: Store, files: Sequence[fs.FileInfo], *, limit_bytes: int) -> None:
    """Raise a ConfigError if some Parquet files, say all of a trial's, cannot be cached together.

    Pictures are compressed already, so they are as large in Arrow as they are in Parquet.
    """
    needed = sum(file.size for file in files)
    if needed > limit_bytes:
        folders = sorted({store.relative(file).rpartition("/")[0] for file in files})
        raise ConfigError(
            f"data.cache_gb = {limit_bytes / 1e9:g}: the pictures of {store.url} "
            f"({', '.join(folders)}) need {needed / 1e9:.3g} GB on each machine; raise it, or make "
            "them smaller with `lipsum-tune prepare --resize`"
        )


def _key(store: Store, file: fs.FileInfo) -> str:
    """A name that a Parquet file has only as long as it is not written again."""
    version = file.mtime_ns
    if version is None and isinstance(store.filesystem, fs.PyFileSystem):
        version = store.filesystem.handler.fs.checksum(file.path)  # of fsspec: an ETag or the like
    identity = f"{FORMAT} {store.filesystem.type_name} {file.path} {file.size} {version}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _touch(paths: Sequence[Path]) -> bool:
    """Mark files as used just now; False if one is not there."""
    try:
        for path in paths:
            with suppress(PermissionError):  # another user's, which can be read all the same
                os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _convert_missing(
    store: Store, files: Sequence[fs.FileInfo], targets: Sequence[Path], limit: int
) -> None:
    """With the lock of the folder held, so that whatever is unfinished there was left behind."""
    folder = targets[0].parent
    for stale in folder.glob("*.unfinished"):
        stale.unlink()
    missing = [pair for pair in zip(files, targets, strict=True) if not pair[1].exists()]
    _make_room(folder, [file for file, _ in missing], keep=targets, limit=limit)
    with ThreadPoolExecutor(_CONVERSIONS) as pool:
        list(pool.map(lambda pair: _convert(store, *pair), missing))
    _touch(targets)


def _make_room(
    folder: Path, missing: Sequence[fs.FileInfo], *, keep: Sequence[Path], limit: int
) -> None:
    """Remove the longest unused files until the missing ones fit, under the limit and on disk."""
    needed = sum(file.size for file in missing)
    found = {path: path.stat() for path in folder.glob("*.arrow")}
    excess = needed + sum(stat.st_size for stat in found.values()) - limit
    for path in sorted(found.keys() - set(keep), key=lambda path: found[path].st_mtime_ns):
        if excess <= 0 and shutil.disk_usage(folder).free >= needed:
            break
        path.unlink(missing_ok=True)
        excess -= found[path].st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: the cache of pictures needs {needed / 1e9:.3g} GB more and the disk has "
            f"{free / 1e9:.3g} GB free{_ADVICE}"
        )


def _convert(store: Store, file: fs.FileInfo, target: Path) -> None:
    """Stream a Parquet file into an Arrow file, which appears whole or not at all."""
    name = f"{store.url}/{store.relative(file)}"
    unfinished = target.with_suffix(".unfinished")
    try:
        with open_parquet(store, file) as parquet, unfinished.open("wb") as sink:
            header_of(parquet, name)
            schema = COLUMNS.with_metadata(parquet.schema_arrow.metadata)
            with ipc.new_file(sink, schema) as writer:
                for batch in parquet.iter_batches(_BATCH, columns=["label", "image"]):
                    writer.write_batch(_flat(batch, schema))
            os.fsync(sink.fileno())
        unfinished.replace(target)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: a full disk, say; Arrow's own errors have no number
        raise ConfigError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _flat(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of the Parquet format as columns of `COLUMNS`."""
    image = batch["image"]
    has_path = image.type.get_field_index("path") >= 0
    paths = pc.struct_field(image, "path") if has_path else pa.nulls(len(batch))
    columns = (batch["label"], paths, pc.struct_field(image, "bytes"))
    arrays = [array.cast(field.type) for array, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
