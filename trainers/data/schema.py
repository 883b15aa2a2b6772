"""The Parquet format in which this project stores labelled images.

A file has the columns ``image`` (struct of ``bytes``, an encoded JPEG or PNG, and ``path``, a name)
and ``label`` (int64). The Arrow schema's metadata hold, as JSON, ``class_names`` in the order of
the labels, ``metadata`` (an object of strings such as ``license``), and ``huggingface``: the
features, so that ``datasets.load_dataset("parquet", data_files=...)`` decodes images and names
classes. A data set is one folder per domain and split:
``<root>/<domain>/<split>/part-00000.parquet``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, first_line

CLASS_NAMES_KEY = b"class_names"
METADATA_KEY = b"metadata"
HUGGINGFACE_KEY = b"huggingface"

MEANING = ("class_map", "crop_pct")
"""Entries of the metadata that change how images are cropped and scored."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

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
    """Class names, free metadata and number of rows of a file."""

    class_names: tuple[str, ...]
    metadata: Mapping[str, str]
    rows: int


def part_path(root: Path, domain: str, split: str, part: int = 0) -> Path:
    """Path of a part of one domain and split below the root of a data set."""
    return root / domain / split / f"part-{part:05d}.parquet"


def arrow_schema(class_names: Sequence[str], metadata: Mapping[str, str]) -> pa.Schema:
    """Schema of a file."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    entries: dict[bytes, Any] = {
        CLASS_NAMES_KEY: list(class_names),
        METADATA_KEY: dict(metadata),
        HUGGINGFACE_KEY: {"info": {"features": features}},
    }
    texts = {
        key: json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
        for key, value in entries.items()
    }
    return pa.schema([("image", IMAGE_TYPE), ("label", pa.int64())], metadata=texts)


def images_table(
    images: Sequence[LabelledImage], class_names: Sequence[str], metadata: Mapping[str, str]
) -> pa.Table:
    """Images as the content of a file."""
    columns = {
        "image": [{"bytes": image.image, "path": image.path} for image in images],
        "label": [image.label for image in images],
    }
    return pa.Table.from_pydict(columns, schema=arrow_schema(class_names, metadata))


def write_images(
    path: Path,
    images: Sequence[LabelledImage],
    class_names: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write images as one Parquet file, which appears whole or not at all, and make its folders."""
    with open_store(path.parent).write(path.name) as file:
        table = images_table(images, class_names, metadata)
        pq.write_table(table, file, row_group_size=ROW_GROUP)


def read_header(store: Store, file: fs.FileInfo | str) -> Header:
    """Header of a file, which takes its footer alone.

    Files written by the package ``datasets`` are read too; they have no metadata.

    Raises:
        ConfigError: not a Parquet file of images, labels and class names.
    """
    with open_parquet(store, file) as parquet:
        return header_of(parquet, store.locate(file))


def check_labels(store: Store, file: fs.FileInfo | str) -> Header:
    """Header of a file, after a check of its labels, which reads no images.

    Raises:
        ConfigError: as `read_header`, or a label is missing or has no class.
    """
    with open_parquet(store, file) as parquet:
        header = header_of(parquet, store.locate(file))
        labels = parquet.read(columns=["label"])["label"]
    least, greatest = pc.min_max(labels).as_py().values()
    classes = len(header.class_names)
    if labels.null_count or (len(labels) and not 0 <= least <= greatest < classes):
        problem = f"labels {least} to {greatest}, {labels.null_count} are missing; it has {classes}"
        raise ConfigError(f"{problem} classes", source=store.locate(file))
    return header


def split_header(store: Store, files: Sequence[fs.FileInfo | str]) -> Header:
    """The header that all files of a split have, with the sum of their rows.

    Raises:
        ConfigError: as `check_labels`; or there are no images, or files that differ.
    """
    with ThreadPoolExecutor(16) as pool:  # buckets answer slowly, but answer many
        headers = list(pool.map(partial(check_labels, store), files))
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        same = [(h.class_names, *map(h.metadata.get, MEANING)) for h in (first, header)]
        if same[0] != same[1]:
            problem = "other class names, crop_pct or class_map than the first file of the split"
            raise ConfigError(problem, source=store.locate(file))
    if not (rows := sum(header.rows for header in headers)):
        where = store.locate(files[0]).rpartition("/")[0]
        raise ConfigError("no images in its files", source=where)
    return Header(first.class_names, first.metadata, rows)


@contextmanager
def open_parquet(store: Store, file: fs.FileInfo | str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, of which only the requested parts are read.

    Raises:
        ConfigError: it cannot be opened, is not Parquet, or cannot be read within the context.
    """
    try:
        with store.open(store.relative(file)) as stream, pq.ParquetFile(stream) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        problem = f"cannot be read: {first_line(error)}"
        raise ConfigError(problem, source=store.locate(file)) from None


def header_of(parquet: pq.ParquetFile, name: str) -> Header:
    """Header of an open file; `name` is for the errors, which are those of `read_header`."""
    schema = parquet.schema_arrow
    try:
        entries = {key: json.loads(text) for key, text in (schema.metadata or {}).items()
                   if key in (CLASS_NAMES_KEY, METADATA_KEY, HUGGINGFACE_KEY)}  # fmt: skip
        names = entries.get(CLASS_NAMES_KEY)
        names = names or entries[HUGGINGFACE_KEY]["info"]["features"]["label"]["names"]
        metadata = {str(k): str(v) for k, v in entries.get(METADATA_KEY, {}).items()}
        content = schema.field("image").type.field("bytes").type
        is_binary = pa.types.is_binary(content) or pa.types.is_large_binary(content)
        if is_binary and pa.types.is_integer(schema.field("label").type):
            return Header(tuple(map(str, names)), metadata, parquet.metadata.num_rows)
    except (LookupError, ValueError, TypeError, AttributeError):
        pass
    raise ConfigError(
        f"its columns {', '.join(schema.names)} are not an image (bytes), a label (integer) and "
        "names of the classes",
        hint="`lipsum-tune prepare parquet` converts other Parquet files",
        source=name,
    )
