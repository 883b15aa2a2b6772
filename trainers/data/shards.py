"""Shards: the Parquet files that an index becomes, each made and checked on its own.

The footer of a finished shard holds a digest of what it was made of, and the findings of its
images. So an interrupted preparation can go on, and still reports everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.parquet as pq

from trainers.data.encoding import BadImage, Encoded, EncodeOptions, encode
from trainers.data.formats.index import Example, Finding, Index
from trainers.data.formats.readers import TooLarge, read_sources, stamp
from trainers.data.formats.retry import require_source
from trainers.data.schema import LabelledImage, arrow_schema, images_table
from trainers.data.storage import Store
from trainers.errors import FULL

FORMAT = 1
"""To be raised if the same images and options would make other files."""

PREPARATION_KEY = b"preparation"
"""Footer entry: `digest`, `stamp` (of the files that were read), and `findings` as lists of path,
kind, detail, bad."""

_ROW_GROUP_ROWS = 256
_ROW_GROUP_BYTES = 64 << 20  # full-size images fill a row group earlier
_REQUESTED = ("border", "resized")  # changes that the layout or the user wants are no findings


@dataclass(frozen=True, kw_only=True)
class Shard(Index):
    """One Parquet file to be made of a part of an index."""

    number: int
    digest: str
    """Of everything that goes in, except the images' bytes."""

    @property
    def path(self) -> str:
        """Relative to the root of the data set."""
        return f"{self.domain}/{self.split}/part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class ShardReport:
    """Content of a finished shard."""

    rows: int
    bytes: int
    """Size of the file."""
    findings: tuple[Finding, ...] = ()
    """Of its images. Bad images are not in the file."""
    reused: bool = field(default=False, compare=False)
    """Whether the file was there already."""
    stamp: str = field(default="", compare=False)
    """Digest of sizes and times of the files that it was read from."""


def plan_shards(index: Index, options: EncodeOptions, size: int) -> list[Shard]:
    """The files of a split, of `size` images each, in the order of the index."""
    common = {
        **{key: value for key, value in vars(index).items() if key not in ("examples", "findings")},
        "format": FORMAT,
        "captions": False,  # 0.1.0 had them; without them its shards would be made again
        "options": asdict(options),
    }
    start = hashlib.sha256(json.dumps(common, sort_keys=True).encode())
    shards = []
    for number, first in enumerate(range(0, len(index.examples), size)):
        examples = index.examples[first : first + size]
        digest = start.copy()
        for example in examples:
            # Names of its classes and fields included, also of the one that 0.1.0 had.
            digest.update(f"{repr(example)[:-1]}, caption=None)".encode())
        part = {**vars(index), "examples": examples, "findings": ()}
        shards.append(Shard(**part, number=number, digest=digest.hexdigest()))
    return shards


def write_shard(
    source: Store, destination: Store, shard: Shard, options: EncodeOptions
) -> ShardReport:
    """Read, check, encode and write the images of a shard. Bad images are left out and reported.

    Raises:
        SourceLost: the source does not answer, or is gone; then the shard is not written.
        OSError: the destination cannot be written to; the message names it.
    """
    findings: list[Finding] = []
    before = stamp(source, (example.source for example in shard.examples))
    rows = _usable(source, shard, options, findings)
    try:
        with destination.write(shard.path) as file:
            count = _write_parquet(file, rows, shard, findings, before)
        size = destination.info(shard.path).size
    except OSError as error:
        reason = "no space left" if error.errno in FULL else " ".join(str(error).split())
        raise OSError(f"{destination.url}/{shard.path}: {reason}") from error
    return ShardReport(count, size, tuple(findings), stamp=before)


def finished(destination: Store, shard: Shard) -> ShardReport | None:
    """Content of the shard if it is there, whole, and made of the same; else None."""
    info = destination.info(shard.path)
    if not info.is_file:
        return None
    try:
        with destination.open(shard.path) as file, pq.ParquetFile(file) as parquet:
            footer = parquet.metadata
            entry = json.loads((footer.metadata or {}).get(PREPARATION_KEY, b"{}"))
    except (OSError, ValueError, RecursionError):  # cut off, or not Parquet
        return None
    if entry.get("digest") != shard.digest or "stamp" not in entry:
        return None
    findings = tuple(Finding(*finding) for finding in entry["findings"])
    return ShardReport(footer.num_rows, info.size, findings, reused=True, stamp=entry["stamp"])


def make_shard(
    source: Store, destination: Store, shard: Shard, options: EncodeOptions
) -> ShardReport:
    """Write the shard unless it is up to date; raises the errors of `write_shard`."""
    report = up_to_date(source, destination, shard, options)
    return write_shard(source, destination, shard, options) if report is None else report


def up_to_date(
    source: Store, destination: Store, shard: Shard, options: EncodeOptions
) -> ShardReport | None:
    """Content of the shard; None if it has to be made, or can be made better.

    It can if its images have changed at the source, or a bad one can now be used. Images that have
    disappeared from the source stay in the shard.
    """
    report = finished(destination, shard)
    if report is None:
        return None
    bad = {finding.path for finding in report.findings if finding.bad}
    again = [e for e in shard.examples if e.path in bad and _has_class(shard, e)]
    for data in read_sources(source, [example.source for example in again]):
        if not isinstance(_encoded(data, options, shard.border), BadImage):
            return None
    now = stamp(source, (example.source for example in shard.examples))
    return None if now and report.stamp and now != report.stamp else report


def _usable(
    source: Store, shard: Shard, options: EncodeOptions, findings: list[Finding]
) -> Iterator[LabelledImage]:
    """Yield the usable images, encoded, and append the findings of all of them."""
    for example in shard.examples:
        if not _has_class(shard, example):
            detail = f"{example.label} of {len(shard.class_names)} classes"
            findings.append(Finding(example.path, "label out of range", detail, bad=True))
    labelled = [example for example in shard.examples if _has_class(shard, example)]
    is_unreadable = False
    found = read_sources(source, [example.source for example in labelled])
    for example, data in zip(labelled, found, strict=True):
        image = _encoded(data, options, shard.border)
        if isinstance(image, BadImage):
            findings.append(Finding(example.path, image.kind, image.detail, bad=True))
            is_unreadable |= isinstance(data, OSError)
        else:
            findings += [Finding(example.path, c) for c in image.changes if c not in _REQUESTED]
            yield LabelledImage(image.data, example.path, example.label)
    if is_unreadable:
        require_source(source)  # it may have gone while it was read


def _has_class(shard: Shard, example: Example) -> bool:
    return 0 <= example.label < len(shard.class_names)


def _encoded(data: bytes | OSError, options: EncodeOptions, border: int) -> Encoded | BadImage:
    if isinstance(data, OSError):
        kind = "too large" if isinstance(data, TooLarge) else "unreadable"
        return BadImage(kind, " ".join(str(data).split()))
    try:
        return encode(data, options, border)
    except BadImage as bad:
        return bad


def _write_parquet(
    file: Any, images: Iterable[LabelledImage], shard: Shard, findings: list[Finding], stamp: str
) -> int:
    """Write row group by row group; the digest comes last, so that only a whole file has it."""
    schema = arrow_schema(shard.class_names, shard.metadata)
    count = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression={"image.bytes": "none", "image.path": "zstd", "label": "zstd"},
        use_dictionary=["label"],
        write_statistics=["label"],
    ) as writer:
        for group in _row_groups(images):
            writer.write_table(images_table(group, schema), row_group_size=len(group))
            count += len(group)
        entry = {
            "digest": shard.digest,
            "stamp": stamp,
            "findings": [[f.path, f.kind, f.detail, f.bad] for f in findings],
        }
        writer.add_key_value_metadata({PREPARATION_KEY.decode(): json.dumps(entry)})
    return count


def _row_groups(images: Iterable[LabelledImage]) -> Iterator[list[LabelledImage]]:
    group: list[LabelledImage] = []
    size = 0
    for image in images:
        group.append(image)
        size += len(image.image)
        if len(group) == _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
