"""The Parquet format in which this project stores labelled images.

A file has the columns ``image`` (struct of ``bytes``, an encoded JPEG or PNG, and ``path``, a name)
and ``label`` (int64). The entry ``huggingface`` of the Arrow schema's metadata has the names of
the classes in the order of the labels, as the package ``datasets`` writes and reads it. A data set
is one folder per domain and split: ``<root>/<domain>/<split>/part-00000.parquet``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainers.data.store import Store
from trainers.errors import ConfigError, StorageFailed, first_line, unreadable

_FORMER = ("class_map", "crop_pct")
"""Entries of the metadata that changed how images were cropped and scored up to 0.2."""

ROW_GROUP = 512
"""Rows; small enough to read a part of a file without holding all of it."""


@dataclass(frozen=True)
class LabelledImage:
    """One row: an encoded image, its name, and the index of its class."""

    image: bytes
    path: str
    label: int


@dataclass(frozen=True)
class Header:
    """Class names and number of rows of a file."""

    class_names: tuple[str, ...]
    rows: int
    labels: frozenset[int] = frozenset()
    """That occur, where labels were checked."""
    content: str = ""
    """For fingerprints: names, sizes and statistics of the footer, without those of its writer."""


def part_path(root: Path, domain: str, split: str, part: int = 0) -> Path:
    """Path of a part of one domain and split below the root of a data set."""
    return root / domain / split / f"part-{part:05d}.parquet"


def write_images(
    file: Path | IO[bytes], images: Sequence[LabelledImage], class_names: Sequence[str]
) -> None:
    """Write images as Parquet to a path, whose folders are made, or to an open file."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    described = json.dumps({"info": {"features": features}}, ensure_ascii=False)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": [{"bytes": image.image, "path": image.path} for image in images],
        "label": [image.label for image in images],
    }
    fields = [("image", image_type), ("label", pa.int64())]
    schema = pa.schema(fields, metadata={"huggingface": described})
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pydict(columns, schema=schema)
    pq.write_table(table, file, row_group_size=ROW_GROUP)


def read_header(store: Store, file: str, *, check_labels: bool = False) -> Header:
    """Header of a file: its footer, and with `check_labels` its labels, but no images."""
    with open_parquet(store, file) as parquet:
        header = _header_of(parquet, store.at(file).url)
        if not check_labels:
            return header
        labels = parquet.read(columns=["label"])["label"]
    least, greatest = pc.min_max(labels).as_py().values()
    classes = len(header.class_names)
    if labels.null_count or (len(labels) and not 0 <= least <= greatest < classes):
        problem = f"labels {least} to {greatest}, {labels.null_count} are missing; it has {classes}"
        raise ConfigError(f"{problem} classes", source=store.at(file).url)
    return replace(header, labels=frozenset(pc.unique(labels).to_pylist()))


def read_headers(store: Store, files: Sequence[str], *, check_labels: bool = False) -> list[Header]:
    """As `read_header` for many files."""
    with ThreadPoolExecutor(16) as pool:  # buckets answer slowly, but answer many
        return list(pool.map(partial(read_header, store, check_labels=check_labels), files))


def split_header(store: Store, files: Sequence[str]) -> Header:
    """The header that all files of a split have, with the sum of their rows; labels are checked."""
    first, *others = read_headers(store, files, check_labels=True)
    for file, header in zip(files[1:], others, strict=True):
        if header.class_names != first.class_names:
            problem = "other class names than the first file of the split"
            raise ConfigError(problem, source=store.at(file).url)
    if not (rows := first.rows + sum(header.rows for header in others)):
        where = store.at(files[0].rpartition("/")[0]).url
        raise ConfigError("no images in its files", source=where)
    return replace(first, rows=rows, labels=first.labels.union(*(h.labels for h in others)))


@contextmanager
def open_parquet(store: Store, file: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, of which only the requested parts are read."""
    where = store.at(file).url
    try:
        stream = store.open(file)
    except OSError as error:
        raise unreadable(error, where, source=where) from None
    try:
        with stream, pq.ParquetFile(stream) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        problem = f"cannot be read: {first_line(error)}"
        if not store.is_local and not isinstance(error, pa.ArrowException):
            raise StorageFailed(f"{where}: {problem}") from None
        raise ConfigError(problem, source=where) from None


def _header_of(parquet: pq.ParquetFile, name: str) -> Header:
    schema, footer = parquet.schema_arrow, parquet.metadata
    texts = schema.metadata or {}
    if former := [key for key in _FORMER if f'"{key}"'.encode() in texts.get(b"metadata", b"")]:
        problem = f"the {former[0]} of its metadata is not read any more"
        hint = "prepare the images again; a suite may have a class_map"
        raise ConfigError(problem, hint=hint, source=name)
    try:
        names = json.loads(texts[b"huggingface"])["info"]["features"]["label"]["names"]
        content = schema.field("image").type.field("bytes").type
        is_binary = pa.types.is_binary(content) or pa.types.is_large_binary(content)
        if is_binary and pa.types.is_integer(schema.field("label").type):
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            columns = [
                _facts(group.column(i)) for group in groups for i in range(group.num_columns)
            ]
            names = tuple(map(str, names))
            rows = [group.num_rows for group in groups]
            none = dict.fromkeys(_FORMER)  # as in the fingerprints of earlier runs
            facts = [name.rpartition("/")[2], names, none, rows, columns]
            return Header(names, footer.num_rows, content=json.dumps(facts))
    except (LookupError, ValueError, TypeError, AttributeError):
        pass
    wanted = "an image (bytes), a label (integer) and names of the classes"
    problem = f"its columns {', '.join(schema.names)} are not {wanted}"
    hint = "`lipsum-tune prepare parquet` converts other Parquet files"
    raise ConfigError(problem, hint=hint, source=name)


def _facts(column: pq.ColumnChunkMetaData) -> list[object]:
    statistics = column.statistics
    known = statistics is not None and statistics.has_min_max
    ends = [repr(statistics.min), repr(statistics.max)] if known else None
    return [column.path_in_schema, column.total_compressed_size, ends]
