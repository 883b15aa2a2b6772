"""Parquet shards as memory-mapped Arrow files on this machine.

Parquet is what is stored and moved; an image in the middle of it costs a whole row group. So each
machine keeps the shards that it reads once more, as uncompressed Arrow IPC files: there an image
is one small read, and all trials and their decoding processes share the pages that the system has
cached. The folder must be on a disk of the machine's own, not on one that machines share.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import filelock
import platformdirs
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs, ipc

from trainers.data.cache.eviction import Room, stats
from trainers.data.cache.network_fs import network_file_system
from trainers.data.schema import cannot_be_read, header_of, open_parquet, read_header
from trainers.data.storage import Store
from trainers.errors import ConfigError

CACHE_VARIABLE = "LIPSUM_TUNE_ARROW_CACHE"
"""Environment variable that names another folder for the cache, on each machine its own."""

FORMAT = 1
"""Raised when what an Arrow file holds changes: files of older formats are then no longer used."""

COLUMNS = pa.schema([("label", pa.int64()), ("path", pa.string()), ("bytes", pa.large_binary())])
"""Of an Arrow file. Images come last: all else of a batch then lies on one page or two."""

_NO_PLACE = {
    *(errno.ENOSPC, errno.EDQUOT),  # full
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # not ours to write to
    *(errno.ENOTDIR, errno.EEXIST),  # a file where the folder should be
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),  # without locks
}
_BATCH = 256  # rows
_LOCK = "lock"
_CONVERSIONS = 4  # files at a time: buckets answer slowly, but answer many
_WORTH_TELLING = 10**9  # bytes
_TELL_EVERY_S = 30.0
_MOUNTS = Path("/proc/mounts")

logger = logging.getLogger(__name__)


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
        FileNotFoundError: others empty the cache meanwhile.
    """
    folder = cache_folder()
    targets = [folder / f"{_key(store, file)}.arrow" for file in files]
    with _refusals_told(folder):
        if not _touch(targets):
            warn_if_shared(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / _LOCK):
                _convert_missing(store, files, targets, limit_bytes)
    return targets


def map_shard(path: Path) -> pa.Table:
    """The rows of an Arrow file, with the columns of `COLUMNS`; read only as they are looked at.

    The mapping outlives the open file, so a data set of many shards needs no descriptors.

    Raises:
        FileNotFoundError: it is not there, or it was torn, by a crash of the machine say, and is
            now removed: either way it has to be made again.
        ConfigError: it is torn and cannot be removed.
    """
    with suppress(pa.ArrowException):
        return _mapped(path)
    with _refusals_told(path.parent), filelock.FileLock(path.parent / _LOCK):
        try:
            return _mapped(path)  # another process may have made it anew
        except pa.ArrowException:
            path.unlink(missing_ok=True)
    raise FileNotFoundError(errno.ENOENT, "torn, and now removed", str(path))


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return ipc.open_file(source).read_all()


@contextmanager
def _refusals_told(folder: Path) -> Iterator[None]:
    """A ConfigError where the system says that this is no place for the cache."""
    try:
        yield
    except NotImplementedError:  # some versions of filelock for ENOSYS
        reason = os.strerror(errno.ENOSYS)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        reason = error.strerror or type(error).__name__
    else:
        return
    raise ConfigError(
        f"{folder}: the cache of images: {reason} (${CACHE_VARIABLE} names another folder)"
    )


def check_limit(
    store: Store, files: Sequence[fs.FileInfo], needed: int, *, limit_bytes: int
) -> None:
    """Raise a ConfigError if some Parquet files, say all of a trial's, cannot be cached together.

    Args:
        store: where they lie.
        files: as the store lists them.
        needed: bytes of their images, uncompressed, as their headers say.
        limit_bytes: of the cache.
    """
    if needed > limit_bytes:
        raise _exceeds(store, files, f"{needed / 1e9:.3g} GB", limit_bytes)


@cache
def warn_if_shared(folder: Path) -> None:
    """Warn, once in a process, of a folder for the cache that machines share."""
    try:
        kind = network_file_system(folder.resolve(), _MOUNTS.read_text(errors="replace"))
    except OSError:  # not Linux
        return
    if kind is not None:
        logger.warning(
            "the cache of images, %s, is on a network file system (%s), where reading is slow "
            "and machines get into each other's way: let %s name a folder on a local disk",
            folder,
            kind,
            CACHE_VARIABLE,
        )


def _exceeds(store: Store, files: Sequence[fs.FileInfo], size: str, limit: int) -> ConfigError:
    return ConfigError(
        f"data.cache_gb = {limit / 1e9:g}: the images of {store.url} ({_parts(store, files)}) "
        f"need {size} on each machine; raise it, or make them smaller with "
        "`lipsum-tune prepare --resize`"
    )


def _parts(store: Store, files: Iterable[fs.FileInfo]) -> str:
    """Domains and splits, such as `real/train, sketch/val`."""
    return ", ".join(sorted({store.relative(file).rpartition("/")[0] for file in files}))


def _key(store: Store, file: fs.FileInfo) -> str:
    """A name that a Parquet file has only as long as it is not written again."""
    version = file.mtime_ns
    if version is None and isinstance(store.filesystem, fs.PyFileSystem):
        version = store.filesystem.handler.fs.checksum(file.path)  # of fsspec: an ETag or the like
    identity = f"{FORMAT} {store.filesystem.type_name} {file.path} {file.size} {version}"
    if not store.is_local:
        identity += f" {_server(store.url)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _server(url: str) -> str:
    """What tells buckets of one name apart: the account, and which S3 server is meant."""
    parts = urlsplit(url)
    asked = parse_qs(parts.query).get("endpoint_override", [])
    usual = [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
    return f"{parts.netloc} {next(filter(None, [*asked, *usual]), '')}"


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
        stale.unlink(missing_ok=True)
    missing = [pair for pair in zip(files, targets, strict=True) if not pair[1].exists()]
    if missing:
        _convert_all(store, missing, targets, limit)
    _touch(targets)


def _convert_all(
    store: Store, missing: Sequence[tuple[fs.FileInfo, Path]], targets: Sequence[Path], limit: int
) -> None:
    files, folder = [file for file, _ in missing], targets[0].parent
    what = f"{_parts(store, files)} of {store.url}"
    with ThreadPoolExecutor(_CONVERSIONS) as pool:
        needed = sum(h.image_bytes for h in pool.map(lambda file: read_header(store, file), files))
        there = sum(stat.st_size for stat in stats(targets).values())
        check_limit(store, files, there + needed, limit_bytes=limit)
        room = Room(folder, keep=targets, limit=limit)
        room.take(needed)
        if needed > _WORTH_TELLING:
            logger.warning("caching %s: %.3g GB in %s", what, needed / 1e9, folder)
        told = time.monotonic()
        converted = pool.map(lambda pair: _convert(store, pair[0], pair[1], room), missing)
        for done, _ in enumerate(converted, 1):
            if time.monotonic() - told >= _TELL_EVERY_S:
                logger.warning("caching %s: %d of %d files", what, done, len(missing))
                told = time.monotonic()


def _convert(store: Store, file: fs.FileInfo, target: Path, room: Room) -> None:
    """Stream a Parquet file into an Arrow file, which appears whole or not at all."""
    name = f"{store.url}/{store.relative(file)}"
    unfinished = target.with_suffix(".unfinished")
    try:
        with open_parquet(store, file) as parquet, unfinished.open("wb") as sink:
            # Room was made for what the footer says; equal images may be in the file only once.
            unforeseen = -header_of(parquet, name).image_bytes
            schema = COLUMNS.with_metadata(parquet.schema_arrow.metadata)
            with ipc.new_file(sink, schema) as writer:
                for batch in parquet.iter_batches(_BATCH, columns=["label", "image"]):
                    rows = _flat(batch, schema)
                    unforeseen += rows.nbytes
                    if unforeseen > 0:
                        if not room.take(unforeseen):
                            raise _exceeds(store, [file], "more than that", room.limit)
                        unforeseen = 0
                    writer.write_batch(rows)
            os.fsync(sink.fileno())
        unfinished.replace(target)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: a full disk, say; Arrow's own errors have no number
        raise cannot_be_read(name, error) from None
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
