"""Parquet shards as memory-mapped Arrow files on this machine.

Parquet is what is stored and moved, but one image in the middle of it costs a whole row group. So
each machine keeps the shards that it reads as uncompressed Arrow IPC files, too: there an image is
one small read, and all trials and their decoding processes share the pages that the system has
cached. The folder must be on a disk of the machine's own, not on one that machines share.

The file `lock` is held by the process that fills the cache, one at a time. Until an Arrow file is
whole, it is called `.unfinished`; what a killed process left of that is removed by the next one.
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
_LOCK = "lock"
_UNFINISHED = ".unfinished"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of this machine's Arrow files."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("lipsum-tune") / "arrow"


def map_shards(
    store: Store, files: Sequence[fs.FileInfo], *, limit_bytes: int
) -> dict[Path, pa.Table]:
    """The Arrow files of some Parquet files, in their order; missing ones are made.

    Rows have the columns of `COLUMNS`, each read when it is used. Mappings outlive the open file,
    so a data set of many shards needs no descriptors.

    One process of a machine converts files, and others that need some wait. If there is no room,
    the files that were unused for longest are removed; processes that have them mapped keep them.

    `limit_bytes` holds for all files of the cache together (`data.cache_gb`), by the headers of the
    Parquet files, in which equal images of a file may count once.

    Raises:
        ConfigError: these files alone exceed the limit or the disk, or one of them is not Parquet
            in the project's format.
    """
    folder = cache_folder()
    targets = [folder / f"{_key(store, file)}.arrow" for file in files]
    with _usable(folder):
        with suppress(FileNotFoundError, pa.ArrowException):
            return {path: _mapped(path) for path in targets}
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / _LOCK)
        try:
            held = lock.acquire(blocking=False)
        except filelock.Timeout:
            what = f"{_parts(store, files)} of {store.url}"
            logger.warning("%s: waiting until another process has filled the cache", what)
            held = lock.acquire()
        with held:
            missing = [pair for pair in zip(files, targets, strict=True) if not _is_whole(pair[1])]
            if missing:
                _convert_all(store, missing, targets, limit_bytes)
            return {path: _mapped(path) for path in targets}


def _is_whole(path: Path) -> bool:
    """Whether an Arrow file is there; one that was torn, as by a crash, is removed."""
    try:
        _mapped(path)
    except (FileNotFoundError, pa.ArrowException):
        path.unlink(missing_ok=True)
        return False
    return True


def _mapped(path: Path) -> pa.Table:
    """The rows of an Arrow file, which is marked as used just now."""
    with suppress(PermissionError):  # another user's, which can be read all the same
        os.utime(path)
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
        size = f"{needed / 1e9:.3g} GB"
        raise ConfigError(
            f"the images of {store.url} ({_parts(store, files)}) need {size} on each machine",
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


def _convert_all(
    store: Store, missing: Sequence[tuple[fs.FileInfo, Path]], keep: Sequence[Path], limit: int
) -> None:
    """Convert the missing files, in threads, after making room for all of them.

    Args:
        keep: Arrow files that are not removed.
        limit: bytes of all files of the cache together.
    """
    folder, files = keep[0].parent, [file for file, _ in missing]
    what = f"{_parts(store, files)} of {store.url}"
    for left_by_a_kill in folder.glob(f"*{_UNFINISHED}"):
        left_by_a_kill.unlink()
    with ThreadPoolExecutor(_CONVERSIONS) as pool:
        headers = pool.map(lambda file: read_header(store, file), files)
        needed = sum(header.image_bytes for header in headers)
        kept = sum(path.stat().st_size for path in keep if path.exists())
        check_limit(store, files, kept + needed, limit_bytes=limit)
        make_room(folder, set(folder.glob("*.arrow")) - {*keep}, needed, limit - kept)
        if needed > _LARGE:
            logger.warning("caching %s: %.3g GB in %s", what, needed / 1e9, folder)
        logged = time.monotonic()
        converted = pool.map(lambda pair: _convert(store, *pair), missing)
        for done, _ in enumerate(converted, 1):
            if time.monotonic() - logged >= _LOG_EVERY_S:
                logger.warning("caching %s: %d of %d files", what, done, len(missing))
                logged = time.monotonic()


def _convert(store: Store, file: fs.FileInfo, target: Path) -> None:
    """Stream a Parquet file into an Arrow file, which appears whole or not at all."""
    unfinished = target.with_suffix(_UNFINISHED)
    try:
        with open_parquet(store, file) as parquet, unfinished.open("wb") as sink:
            schema = COLUMNS.with_metadata(parquet.schema_arrow.metadata)
            with ipc.new_file(sink, schema) as writer:
                for batch in parquet.iter_batches(_BATCH, columns=["label", "image"]):
                    writer.write_batch(_flat(batch, schema))
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(target)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, such as a full disk; Arrow's own errors have no number
        raise cannot_be_read(store.locate(file), error) from None
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


def make_room(
    folder: Path, removable: Iterable[Path], size: int, limit: int, *, disk_share: float = 1.0
) -> None:
    """Remove files until the rest of them and `size` more bytes, at most `limit`, fit.

    Args:
        limit: bytes of the removable files and of `size` together.
        disk_share: of the free disk that `size` may take.

    Raises:
        OSError: ENOSPC; the disk does not have the room. Nothing is removed if removing everything
            would not be enough.
    """
    found = {path: path.stat() for path in removable}
    total = sum(stat.st_size for stat in found.values())
    needed = size / disk_share
    _require_disk(folder, needed, total)
    for path in sorted(found, key=lambda path: found[path].st_mtime_ns):
        if total + size <= limit and shutil.disk_usage(folder).free >= needed:
            break
        path.unlink(missing_ok=True)
        total -= found[path].st_size
    _require_disk(folder, needed, 0)  # a removed file keeps its room while it is mapped


def _require_disk(folder: Path, size: float, removable: int) -> None:
    free = shutil.disk_usage(folder).free
    if free + removable >= size:
        return
    others = f" and {removable / 1e9:.3g} GB of other files" if removable else ""
    raise OSError(
        errno.ENOSPC,
        f"{size / 1e9:.3g} GB more are needed, and the disk has {free / 1e9:.3g} GB free{others}",
    )
