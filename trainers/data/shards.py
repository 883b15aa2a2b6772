"""Shards: the Parquet files that a listing becomes, each made and checked on its own.

A finished shard says in its footer what it was made of, as a digest, and what was found while it
was made. So a preparation that was interrupted knows what is left to do, and reports everything.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainers.data.encoding import BadImage, EncodeOptions, encode
from trainers.data.formats.index import Example, Finding, Index, Split
from trainers.data.formats.readers import TooLarge, read_sources, stamp
from trainers.data.formats.retry import require_source
from trainers.data.schema import arrow_schema
from trainers.data.storage import Store

FORMAT = 1
"""Raise it when the same images and options would make other files."""
PREPARATION_KEY = b"preparation"
"""Of the footer's entry: `digest`, `stamp` (of the files it was read from), and `findings` as lists
of path, kind, detail, bad."""

_ROW_GROUP_ROWS = 256
_ROW_GROUP_BYTES = 64 << 20  # of full-size images, fewer rows are held at once
_UNREADABLE = "unreadable"
_ASKED_FOR = ("border", "resized")
"""Changes that the layout or the user wants in every image: nothing to report."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file that is to be."""

    domain: str
    split: Split
    number: int
    examples: tuple[Example, ...]
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]
    border: int
    captions: bool
    digest: str
    """Over all that goes in, but the images' bytes."""

    @property
    def path(self) -> str:
        """Relative to the root of the data set."""
        return f"{self.domain}/{self.split}/part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class ShardReport:
    """What a finished shard holds."""

    rows: int
    bytes: int
    """Size of the file."""
    findings: tuple[Finding, ...] = ()
    """Of its images; the bad ones are not in it."""
    reused: bool = field(default=False, compare=False)
    """Whether it was there already."""
    stamp: str = field(default="", compare=False)
    """Sizes and times of the files that it was read from, as a digest."""


def plan_shards(listing: Index, options: EncodeOptions, size: int) -> list[Shard]:
    """The files of a split, of `size` images each, in the order of the listing."""
    captions = any(example.caption is not None for example in listing.examples)
    common = {
        "format": FORMAT,
        "domain": listing.domain,
        "split": listing.split,
        "class_names": listing.class_names,
        "metadata": dict(listing.metadata),
        "border": listing.border,
        "captions": captions,
        "options": asdict(options),
    }
    start = hashlib.sha256(json.dumps(common, sort_keys=True).encode())
    shards = []
    for number, first in enumerate(range(0, len(listing.examples), size)):
        examples = listing.examples[first : first + size]
        digest = start.copy()
        for example in examples:
            digest.update(repr(example).encode())
        shards.append(
            Shard(
                listing.domain,
                listing.split,
                number,
                examples,
                listing.class_names,
                listing.metadata,
                listing.border,
                captions,
                digest.hexdigest(),
            )
        )
    return shards


def write_shard(
    source: Store, destination: Store, shard: Shard, options: EncodeOptions
) -> ShardReport:
    """Read, check, encode and write the images of a shard.

    Images that cannot be used are left out and are in the report.

    Raises:
        SourceLost: the source does not answer, or is gone; then there is no such shard.
        OSError: the destination cannot be written to; the message names it.
    """
    findings: list[Finding] = []
    before = _stamp(source, shard)
    rows = _usable(source, shard, options, findings)
    try:
        with destination.write(shard.path) as file:
            count = _write_parquet(file, rows, shard, findings, before)
        size = destination.info(shard.path).size
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left"
        else:
            reason = " ".join(str(error).split())
        raise OSError(f"{destination.url}/{shard.path}: {reason}") from error
    return ShardReport(count, size, tuple(findings), stamp=before)


def _stamp(source: Store, shard: Shard) -> str:
    return stamp(source, (example.source for example in shard.examples))


def finished(destination: Store, shard: Shard) -> ShardReport | None:
    """What the shard holds, if it is there, whole, and made of the same; else None."""
    info = destination.info(shard.path)
    if not info.is_file:
        return None
    try:
        with destination.open(shard.path) as file, pq.ParquetFile(file) as parquet:
            footer = parquet.metadata
            entry = json.loads((footer.metadata or {}).get(PREPARATION_KEY, b"{}"))
    except (OSError, pa.ArrowInvalid, json.JSONDecodeError):  # cut off, or no Parquet at all
        return None
    if entry.get("digest") != shard.digest or "stamp" not in entry:
        return None
    findings = tuple(Finding(*finding) for finding in entry["findings"])
    return ShardReport(footer.num_rows, info.size, findings, reused=True, stamp=entry["stamp"])


def make_shard(
    source: Store, destination: Store, shard: Shard, options: EncodeOptions
) -> ShardReport:
    """The shard as it is if it is up to date, else anew.

    Raises:
        SourceLost, OSError: as `write_shard`.
    """
    report = up_to_date(source, destination, shard, options)
    return write_shard(source, destination, shard, options) if report is None else report


def up_to_date(
    source: Store, destination: Store, shard: Shard, options: EncodeOptions
) -> ShardReport | None:
    """What the shard holds, if it is finished and there is nothing better to be had.

    None, too, if its images have changed at the source or one that was bad can now be used. What
    is gone from the source is no reason to give up what was made of it.
    """
    report = finished(destination, shard)
    if report is None or _is_mended(source, shard, report, options):
        return None
    now = _stamp(source, shard)
    return None if now and report.stamp and now != report.stamp else report


def _is_mended(source: Store, shard: Shard, report: ShardReport, options: EncodeOptions) -> bool:
    """Whether an image that was bad can now be used."""
    bad = {finding.path for finding in report.findings if finding.bad}
    again = [e for e in shard.examples if e.path in bad and _is_in_range(shard, e.label)]
    return any(
        not isinstance(_encoded(data, options, shard.border), BadImage)
        for data in read_sources(source, [example.source for example in again])
    )


def _usable(
    source: Store, shard: Shard, options: EncodeOptions, findings: list[Finding]
) -> Iterator[tuple[Example, bytes]]:
    """The images that can be used, encoded; `findings` gets what is to be said of all."""
    in_range = []
    for example in shard.examples:
        if _is_in_range(shard, example.label):
            in_range.append(example)
        else:
            detail = f"{example.label} of {len(shard.class_names)} classes"
            findings.append(Finding(example.path, "label out of range", detail, bad=True))
    found = read_sources(source, [example.source for example in in_range])
    for example, data in zip(in_range, found, strict=True):
        image = _encoded(data, options, shard.border)
        if isinstance(image, BadImage):
            findings.append(Finding(example.path, image.kind, image.detail, bad=True))
            continue
        encoded, changes = image
        findings += [Finding(example.path, c) for c in changes if c not in _ASKED_FOR]
        yield example, encoded
    if any(finding.kind == _UNREADABLE for finding in findings):
        require_source(source)  # it may have gone while it was read


def _is_in_range(shard: Shard, label: int) -> bool:
    return 0 <= label < len(shard.class_names)


def _encoded(
    data: bytes | OSError, options: EncodeOptions, border: int
) -> tuple[bytes, tuple[str, ...]] | BadImage:
    if isinstance(data, OSError):
        kind = "too large" if isinstance(data, TooLarge) else _UNREADABLE
        return BadImage(kind, " ".join(str(data).split()))
    try:
        encoded = encode(data, options, border)
    except BadImage as bad:
        return bad
    return encoded.data, encoded.changes


def _write_parquet(
    file: Any,
    rows: Iterable[tuple[Example, bytes]],
    shard: Shard,
    findings: list[Finding],
    stamp: str,
) -> int:
    """Stream row groups; the entry with the digest comes last, so that only a whole file has it."""
    schema = arrow_schema(shard.class_names, shard.metadata, captions=shard.captions)
    writer = pq.ParquetWriter(
        file,
        schema,
        compression={"image.bytes": "none", "image.path": "zstd", "label": "zstd"},
        use_dictionary=["label"],
        write_statistics=["label"],
    )
    count = 0
    try:
        for group in _row_groups(rows):
            writer.write_table(_table(group, schema), row_group_size=len(group))
            count += len(group)
        entry = {
            "digest": shard.digest,
            "stamp": stamp,
            "findings": [[f.path, f.kind, f.detail, f.bad] for f in findings],
        }
        writer.add_key_value_metadata({PREPARATION_KEY.decode(): json.dumps(entry)})
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            writer.close()
        raise
    writer.close()
    return count


def _row_groups(
    rows: Iterable[tuple[Example, bytes]],
) -> Iterator[list[tuple[Example, bytes]]]:
    group: list[tuple[Example, bytes]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row[1])
        if len(group) == _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(group: list[tuple[Example, bytes]], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {
        "image": [{"bytes": data, "path": example.path} for example, data in group],
        "label": [example.label for example, _ in group],
    }
    if "caption" in schema.names:
        columns["caption"] = [example.caption for example, _ in group]
    return pa.Table.from_pydict(columns, schema=schema)
