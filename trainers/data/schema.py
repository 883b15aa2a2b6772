"""The Parquet format in which this project keeps labelled images.

A file has the columns

- ``image``: struct of ``bytes`` (an encoded JPEG or PNG) and ``path`` (a name, may be null),
- ``label``: int64, an index into the class names,
- ``caption``: string, only where the data set has captions.

The Arrow schema's metadata hold, as JSON in UTF-8,

- ``class_names``: list of the names of the classes, in the order of the labels,
- ``metadata``: object of strings, such as ``license``, ``attribution`` and ``source``,
- ``huggingface``: the features as the package ``datasets`` writes them, so that
  ``datasets.load_dataset("parquet", data_files=...)`` decodes images and names classes.

A data set is one folder per domain and split: ``<root>/<domain>/<split>/part-00000.parquet``.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from trainers.data.storage import Store
from trainers.errors import ConfigError, first_line

CLASS_NAMES_KEY = b"class_names"
METADATA_KEY = b"metadata"
HUGGINGFACE_KEY = b"huggingface"

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_ROW_GROUP = 512  # rows; small enough to read a part of a file without holding all of it
_ADVICE = " (`lipsum-tune prepare parquet` turns other Parquet files into such)"


@dataclass(frozen=True)
class LabelledImage:
    """One row: an encoded image, its name, the index of its class, and perhaps a caption."""

    image: bytes
    path: str
    label: int
    caption: str | None = None


@dataclass(frozen=True)
class Header:
    """What a file says about itself: names of the classes, free metadata, number of rows."""

    class_names: tuple[str, ...]
    metadata: Mapping[str, str]
    rows: int
    image_bytes: int = 0
    """Of the column image, uncompressed."""


def part_path(root: Path, domain: str, split: str, part: int = 0) -> Path:
    """Return where a part of one domain and split is kept below the root of a data set."""
    return root / domain / split / f"part-{part:05d}.parquet"


def part_paths(root: Path, domain: str, split: str) -> list[Path]:
    """Return the existing parts of one domain and split in order.

    Raises FileNotFoundError if there is none.
    """
    paths = sorted((root / domain / split).glob("part-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no part-*.parquet in {root / domain / split}")
    return paths


def arrow_schema(
    class_names: Sequence[str], metadata: Mapping[str, str], *, captions: bool
) -> pa.Schema:
    """Return the schema of a file, with or without a column of captions."""
    fields = [("image", IMAGE_TYPE), ("label", pa.int64())]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    if captions:
        fields.append(("caption", pa.string()))
        features["caption"] = {"dtype": "string", "_type": "Value"}
    return pa.schema(
        fields,
        metadata={
            CLASS_NAMES_KEY: _json(list(class_names)),
            METADATA_KEY: _json(dict(metadata)),
            HUGGINGFACE_KEY: _json({"info": {"features": features}}),
        },
    )


def write_images(
    path: Path,
    images: Sequence[LabelledImage],
    class_names: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write images as one Parquet file; a reader sees the whole file or none.

    Folders are made as needed. There is a column of captions if any image has one.
    Raises ValueError if a label has no class name or two classes share a name.
    """
    if len(set(class_names)) != len(class_names):
        raise ValueError("class names must be distinct")
    for image in images:
        if not 0 <= image.label < len(class_names):
            raise ValueError(f"{image.path}: label {image.label} of {len(class_names)} classes")
    captions = any(image.caption is not None for image in images)
    columns: dict[str, Any] = {
        "image": [{"bytes": image.image, "path": image.path} for image in images],
        "label": [image.label for image in images],
    }
    if captions:
        columns["caption"] = [image.caption for image in images]
    schema = arrow_schema(class_names, metadata, captions=captions)
    table = pa.Table.from_pydict(columns, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, table)


def _write_atomically(path: Path, table: pa.Table) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        # mkstemp makes the file private; a data set is as readable as its folder allows.
        temporary.chmod(0o644)
        with os.fdopen(handle, "wb") as file:
            pq.write_table(table, file, row_group_size=_ROW_GROUP)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(store: Store, file: fs.FileInfo | str) -> Header:
    """Return what a file says about itself, reading its footer alone.

    Files written by the package ``datasets`` are understood too; they have no metadata.
    Raises ConfigError if it is no Parquet file, has no columns image and label of the right types,
    or no class names.
    """
    with open_parquet(store, file) as parquet:
        return header_of(parquet, f"{store.url}/{_relative(store, file)}")


def check_labels(store: Store, file: fs.FileInfo | str) -> Header:
    """Return the header of a file after a look at its labels, reading no images.

    Raises ConfigError as `read_header` does, and if labels cannot be read, or one is missing or
    names no class.
    """
    name = f"{store.url}/{_relative(store, file)}"
    with open_parquet(store, file) as parquet:
        header = header_of(parquet, name)
        try:
            labels = parquet.read(columns=["label"])["label"]
        except (pa.ArrowException, OSError) as error:
            raise cannot_be_read(name, error) from None
    check_range(labels, len(header.class_names), name)
    return header


def check_range(labels: pa.ChunkedArray | pa.Array, num_classes: int, name: str) -> None:
    """Raise a ConfigError that names the file if a label is null or not in [0, num_classes)."""
    if labels.null_count:
        raise ConfigError(f"{name}: {labels.null_count} of its {len(labels)} labels are missing")
    least, greatest = pc.min_max(labels).as_py().values()
    if len(labels) and not 0 <= least <= greatest < num_classes:
        wrong = least if least < 0 else greatest
        raise ConfigError(
            f"{name}: label {wrong} of {num_classes} classes (0 to {num_classes - 1})"
        )


@contextmanager
def open_parquet(store: Store, file: fs.FileInfo | str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of which only what is asked for is read.

    Raises ConfigError if it cannot be opened or is not one; not for what is read afterwards.
    """
    name = f"{store.url}/{_relative(store, file)}"
    try:
        stream = store.open(_relative(store, file))
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be opened: {reason}") from None
    with stream:
        try:
            parquet = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise ConfigError(f"{name}: not a whole Parquet file ({first_line(error)})") from None
        except (pa.ArrowException, OSError) as error:
            raise cannot_be_read(name, error) from None
        with parquet:
            yield parquet


def cannot_be_read(name: str, error: Exception) -> ConfigError:
    """What to raise where Arrow, or the file system, gives up in the middle of a file."""
    return ConfigError(f"{name}: cannot be read: {first_line(error)}")


def class_names_of(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """Return the class names in a schema's metadata, ours or those of the package ``datasets``.

    Raises ConfigError, naming the file, if there are none.
    """
    entries = schema.metadata or {}
    if CLASS_NAMES_KEY in entries:
        return tuple(json.loads(entries[CLASS_NAMES_KEY]))
    features = json.loads(entries.get(HUGGINGFACE_KEY, b"{}")).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names")
    if names is None:
        raise ConfigError(f"{name}: no class names in its schema's metadata{_ADVICE}")
    return tuple(names)


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """Return the free metadata in a schema; none in files of the package ``datasets``."""
    text = (schema.metadata or {}).get(METADATA_KEY, b"{}")
    return {str(key): str(value) for key, value in json.loads(text).items()}


def header_of(parquet: pq.ParquetFile, name: str) -> Header:
    """Return what an open file says about itself; `name` is for the errors of `read_header`."""
    schema = parquet.schema_arrow
    for column in ("image", "label"):
        if column not in schema.names:
            raise ConfigError(f"{name}: no column {column!r}{_ADVICE}")
    image, label = (schema.field(column).type for column in ("image", "label"))
    if not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
        raise ConfigError(
            f"{name}: its column 'image' is {image}, not a struct with bytes{_ADVICE}"
        )
    encoded = image.field("bytes").type
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise ConfigError(f"{name}: its column 'image.bytes' is {encoded}, not binary{_ADVICE}")
    if not pa.types.is_integer(label):
        raise ConfigError(f"{name}: its column 'label' is {label}, not integers{_ADVICE}")
    footer = parquet.metadata
    return Header(
        class_names_of(schema, name), metadata_of(schema), footer.num_rows, _image_bytes(footer)
    )


def _image_bytes(footer: pq.FileMetaData) -> int:
    columns = [
        column
        for column in range(footer.num_columns)
        if footer.schema.column(column).path.startswith("image.")
    ]
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    return sum(group.column(c).total_uncompressed_size for group in groups for c in columns)


def _relative(store: Store, file: fs.FileInfo | str) -> str:
    return file if isinstance(file, str) else store.relative(file)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
