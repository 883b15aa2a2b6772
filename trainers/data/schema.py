"""The Parquet format in which this project keeps labelled pictures.

A file has the columns

- ``image``: struct of ``bytes`` (an encoded JPEG or PNG) and ``path`` (a name, may be null),
- ``label``: int64, an index into the class names,
- ``caption``: string, only where the data set has captions.

The Arrow schema's metadata hold, as JSON in UTF-8,

- ``class_names``: list of the names of the classes, in the order of the labels,
- ``metadata``: object of strings, such as ``license``, ``attribution`` and ``source``,
- ``huggingface``: the features as the package ``datasets`` writes them, so that
  ``datasets.load_dataset("parquet", data_files=...)`` decodes pictures and names classes.

A data set is one folder per domain and split: ``<root>/<domain>/<split>/part-00000.parquet``.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CLASS_NAMES_KEY = b"class_names"
METADATA_KEY = b"metadata"
HUGGINGFACE_KEY = b"huggingface"

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_ROW_GROUP = 512  # rows; small enough to read a part of a file without holding all of it


@dataclass(frozen=True)
class LabelledImage:
    """One row: an encoded picture, its name, the index of its class, and perhaps a caption."""

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
    """Write pictures as one Parquet file; a reader sees the whole file or none.

    Folders are made as needed. There is a column of captions if any picture has one.
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


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes of a file, in the order of its labels."""
    return read_header(path).class_names


def read_header(path: Path) -> Header:
    """Return what the file says about itself, without reading its pictures.

    Files written by the package ``datasets`` are understood too; they have no metadata.
    Raises ValueError if the file has no columns image and label, or no class names.
    """
    with pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    for column in ("image", "label"):
        if column not in schema.names:
            raise ValueError(f"{path} has no column {column!r}")
    return Header(_class_names(schema, path), _metadata(schema), rows)


def _class_names(schema: pa.Schema, path: Path) -> tuple[str, ...]:
    entries = schema.metadata or {}
    if CLASS_NAMES_KEY in entries:
        return tuple(json.loads(entries[CLASS_NAMES_KEY]))
    features = json.loads(entries.get(HUGGINGFACE_KEY, b"{}")).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names")
    if names is None:
        raise ValueError(f"{path} has no class names in its schema metadata")
    return tuple(names)


def _metadata(schema: pa.Schema) -> dict[str, str]:
    text = (schema.metadata or {}).get(METADATA_KEY, b"{}")
    return {str(key): str(value) for key, value in json.loads(text).items()}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
