"""Parquet shards as memory-mapped Arrow files on this machine.

Parquet is what is stored and moved, but one image in the middle of it costs a whole row group. So
each machine keeps the shards that it reads as uncompressed Arrow IPC files, too: there an image is
one small read, and all trials and their decoding processes share the pages that the system has
cached. The folder must be on a disk of the machine's own, not on one that machines share.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import filelock
import platformdirs
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs, ipc

from trainers.data.cache.room import make_room, room_lock, stats
from trainers.data.schema import cannot_be_read, open_parquet, read_header
from trainers.data.storage import Store
from trainers.errors import DENIED, FULL, ConfigError

CACHE_VARIABLE = "LIPSUM_TUNE_ARROW_CACHE"
"""Environment variable that names another folder for the cache, a different one on each machine."""

FORMAT = 1
"""To be raised if the content of Arrow files changes; older files are then no longer used."""

COLUMNS = pa.schema([("label", pa.int64()), ("path", pa.string()), ("bytes", pa.large_binary())])
"""Of an Arrow file. Images come last, so that the rest of a batch lies on one page or two."""

_UNUSABLE = {
    *FULL,
    *DENIED,
    *(errno.ENOTDIR, errno.EEXIST),  # a file where the folder should be
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),  # without locks
}
_BATCH = 256  # rows
_CONVERSIONS = 4  # files at a time: buckets answer slowly, but answer many
_LARGE = 10**9  # bytes whose conversion is logged
_LOG_EVERY_S = 30.0
_UNFINISHED = ".unfinished"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of this machine's Arrow files."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("lipsum-tune") / "arrow"


def cached_shards(store: Store, files: Sequence[fs.FileInfo], *, limit_bytes: int) -> list[Path]:
    """The Arrow files of some Parquet files, in their order; missing ones are made.

    One process of a machine converts a set of files; others that need it wait. If there is no room,
    the files that were unused for longest are removed; processes that have them mapped keep them.

    `limit_bytes` holds for all files of the cache together (`data.cache_gb`), except those that are
    being written.

    Raises:
        ConfigError: these files alone exceed the limit or the disk, or one of them is not Parquet
            in the project's format.
        FileNotFoundError: other processes empty the cache meanwhile.
    """
    folder = cache_folder()
    targets = [folder / f"{_key(store, file)}.arrow" for file in files]
    with _usable(folder):
        if _touch(targets):
            return targets
        folder.mkdir(parents=True, exist_ok=True)
        what = f"{_parts(store, files)} of {store.url}"
        name = hashlib.sha256(" ".join(sorted(map(str, targets))).encode()).hexdigest()[:32]
        _remove_leftovers(folder)
        lock = _set_lock(folder, name)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            logger.warning("%s: waiting until another process has cached it", what)
            lock.acquire()
        try:
            missing = [pair for pair in zip(files, targets, strict=True) if not pair[1].exists()]
            if missing:
                unfinished = folder / f"{name}{_UNFINISHED}"
                unfinished.mkdir(exist_ok=True)
                try:
                    _convert_all(store, missing, unfinished, targets, limit_bytes)
                finally:
                    shutil.rmtree(unfinished)
            _touch(targets)
        finally:
            lock.release()
    return targets


def map_shard(path: Path) -> pa.Table:
    """The rows of an Arrow file with the columns of `COLUMNS`, each read when it is used.

    The mapping outlives the open file, so a data set of many shards needs no descriptors.

    Raises:
        FileNotFoundError: it is missing; or it was damaged, for instance by a crash of the machine,
            and is now removed. It has to be made again.
        ConfigError: it is damaged and cannot be removed.
    """
    with suppress(pa.ArrowException):
        return _mapped(path)
    with _usable(path.parent), room_lock(path.parent):
        try:
            return _mapped(path)  # another process may have made it again
        except pa.ArrowException:
            path.unlink(missing_ok=True)
    raise FileNotFoundError(errno.ENOENT, "damaged, and now removed", str(path))


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        table = ipc.open_file(source).read_all()
    if table.schema.remove_metadata() != COLUMNS:
        raise pa.ArrowInvalid(f"columns {table.schema.names}")
    table.validate(full=True)  # damaged offsets of images would crash the process
    return table


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Raise a ConfigError for an error which means that the cache cannot be in this folder."""
    try:
        yield
    except NotImplementedError:  # some versions of filelock for ENOSYS
        reason = os.strerror(errno.ENOSYS)
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        reason = error.strerror or type(error).__name__
    else:
        return
    raise ConfigError(
        f"the cache of images: {reason}",
        hint=f"${CACHE_VARIABLE} names another folder",
        source=folder,
    )


def check_limit(
    store: Store, files: Sequence[fs.FileInfo], needed: int, *, limit_bytes: int
) -> None:
    """Raise a ConfigError if some Parquet files, such as all of a trial's, exceed the limit.

    `needed` is the size of their images in bytes, uncompressed, by their headers.
    """
    if needed > limit_bytes:
        raise ConfigError(
            f"the images of {store.url} ({_parts(store, files)}) need {needed / 1e9:.3g} GB "
            "on each machine",
            key="data.cache_gb",
            value=limit_bytes / 1e9,
            hint="raise it, or make images smaller with `lipsum-tune prepare --resize`",
        )


def _parts(store: Store, files: Iterable[fs.FileInfo]) -> str:
    """Domains and splits, such as `real/train, sketch/val`."""
    return ", ".join(sorted({store.relative(file).rpartition("/")[0] for file in files}))


def _key(store: Store, file: fs.FileInfo) -> str:
    """Name for a Parquet file that changes if the file is written again."""
    version = file.mtime_ns
    if version is None and isinstance(store.filesystem, fs.PyFileSystem):
        version = store.filesystem.handler.fs.checksum(file.path)  # of fsspec: an ETag or the like
    identity = f"{FORMAT} {store.filesystem.type_name} {file.path} {file.size} {version}"
    if not store.is_local:
        identity += f" {_server(store.url)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _server(url: str) -> str:
    """Account and S3 server, which differ for buckets of the same name."""
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


def _set_lock(folder: Path, name: str) -> filelock.FileLock:
    """The lock of the process that converts a set of files."""
    return filelock.FileLock(folder / f"lock-{name}")


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed conversions have left: the unfinished files whose lock is free."""
    for leftover in folder.glob(f"*{_UNFINISHED}"):
        with (
            suppress(filelock.Timeout),
            _set_lock(folder, leftover.stem).acquire(blocking=False),
        ):
            shutil.rmtree(leftover, ignore_errors=True)


def _convert_all(
    store: Store,
    missing: Sequence[tuple[fs.FileInfo, Path]],
    unfinished: Path,
    targets: Sequence[Path],
    limit: int,
) -> None:
    """Convert the missing files of a set, in threads, after making room for all of them.

    Args:
        unfinished: folder of the files that are being written.
        targets: Arrow files of the whole set.
    """
    files = [file for file, _ in missing]
    what = f"{_parts(store, files)} of {store.url}"

    def take(size: int, *, free: int) -> None:
        kept = sum(stat.st_size for stat in stats(targets).values())
        check_limit(store, files, kept + size, limit_bytes=limit)
        make_room(unfinished.parent, "*.arrow", size, limit=limit, free=free, keep=targets)

    def convert(pair: tuple[fs.FileInfo, Path]) -> None:
        file, target = pair
        whole = unfinished / target.name
        _convert(store, file, whole)
        with room_lock(unfinished.parent):
            # A footer may state less than this: equal images may be in a Parquet file only once.
            take(whole.stat().st_size, free=0)
            whole.replace(target)

    with ThreadPoolExecutor(_CONVERSIONS) as pool:
        headers = pool.map(lambda file: read_header(store, file), files)
        needed = sum(header.image_bytes for header in headers)
        with room_lock(unfinished.parent):
            take(needed, free=needed)
        if needed > _LARGE:
            logger.warning("caching %s: %.3g GB in %s", what, needed / 1e9, unfinished.parent)
        logged = time.monotonic()
        for done, _ in enumerate(pool.map(convert, missing), 1):
            if time.monotonic() - logged >= _LOG_EVERY_S:
                logger.warning("caching %s: %d of %d files", what, done, len(missing))
                logged = time.monotonic()


def _convert(store: Store, file: fs.FileInfo, target: Path) -> None:
    """Stream a Parquet file into an Arrow file."""
    try:
        with open_parquet(store, file) as parquet, target.open("wb") as sink:
            schema = COLUMNS.with_metadata(parquet.schema_arrow.metadata)
            with ipc.new_file(sink, schema) as writer:
                for batch in parquet.iter_batches(_BATCH, columns=["label", "image"]):
                    writer.write_batch(_flat(batch, schema))
            sink.flush()
            os.fsync(sink.fileno())
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, such as a full disk; Arrow's own errors have no number
        raise cannot_be_read(store.locate(file), error) from None


def _flat(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of the Parquet format as columns of `COLUMNS`."""
    image = batch["image"]
    has_path = image.type.get_field_index("path") >= 0
    paths = pc.struct_field(image, "path") if has_path else pa.nulls(len(batch))
    columns = (batch["label"], paths, pc.struct_field(image, "bytes"))
    arrays = [array.cast(field.type) for array, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
