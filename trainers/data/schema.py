"""The Parquet format in which this project stores labelled images.

A file has the columns

- ``image``: struct of ``bytes`` (an encoded JPEG or PNG) and ``path`` (a name, may be null),
- ``label``: int64, an index into the class names.

The Arrow schema's metadata hold, as JSON in UTF-8,

- ``class_names``: list of the class names, in the order of the labels,
- ``metadata``: object of strings, such as ``license``, ``attribution`` and ``source``,
- ``huggingface``: the features as the package ``datasets`` writes them, so that
  ``datasets.load_dataset("parquet", data_files=...)`` decodes images and names classes.

A data set is one folder per domain and split: ``<root>/<domain>/<split>/part-00000.parquet``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_ROW_GROUP = 512  # rows; small enough to read a part of a file without holding all of it
_HINT = "`lipsum-tune prepare parquet` converts other Parquet files"


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
    fields = [("image", IMAGE_TYPE), ("label", pa.int64())]
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
    return pa.schema(fields, metadata=texts)


def images_table(images: Sequence[LabelledImage], schema: pa.Schema) -> pa.Table:
    """Images as rows of a schema of `arrow_schema`."""
    columns = {
        "image": [{"bytes": image.image, "path": image.path} for image in images],
        "label": [image.label for image in images],
    }
    return pa.Table.from_pydict(columns, schema=schema)


def write_images(
    path: Path,
    images: Sequence[LabelledImage],
    class_names: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write images as one Parquet file, which appears whole or not at all, and make its folders.

    Raises:
        ValueError: a label has no class name, or two classes share a name.
    """
    if len(set(class_names)) != len(class_names):
        raise ValueError("class names must be distinct")
    for image in images:
        if not 0 <= image.label < len(class_names):
            raise ValueError(f"{image.path}: label {image.label} of {len(class_names)} classes")
    table = images_table(images, arrow_schema(class_names, metadata))
    with open_store(path.parent).write(path.name) as file:
        pq.write_table(table, file, row_group_size=_ROW_GROUP)


def read_header(store: Store, file: fs.FileInfo | str) -> Header:
    """Header of a file, which takes its footer alone.

    Files written by the package ``datasets`` are read too; they have no metadata.

    Raises:
        ConfigError: not a Parquet file, no columns image and label of the right types, or no class
            names.
    """
    with open_parquet(store, file) as parquet:
        return header_of(parquet, store.locate(file))


def check_labels(store: Store, file: fs.FileInfo | str) -> Header:
    """Header of a file, after a check of its labels, which reads no images.

    Raises:
        ConfigError: as `read_header`, or a label cannot be read, is missing or has no class.
    """
    name = store.locate(file)
    with open_parquet(store, file) as parquet:
        header = header_of(parquet, name)
        labels = parquet.read(columns=["label"])["label"]
    if labels.null_count:
        problem = f"{labels.null_count} of its {len(labels)} labels are missing"
        raise ConfigError(problem, source=name)
    least, greatest = pc.min_max(labels).as_py().values()
    num_classes = len(header.class_names)
    if len(labels) and not 0 <= least <= greatest < num_classes:
        wrong = least if least < 0 else greatest
        problem = f"label {wrong} of {num_classes} classes (0 to {num_classes - 1})"
        raise ConfigError(problem, source=name)
    return header


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
    types = dict(zip(schema.names, schema.types, strict=True))
    if not {"image", "label"} <= types.keys() or len(types) < len(schema.names):
        problem = f"expected columns 'image' and 'label', found {', '.join(schema.names)}"
        raise ConfigError(problem, hint=_HINT, source=name)
    image, label = types["image"], types["label"]
    content = [f.type for f in image if f.name == "bytes"] if pa.types.is_struct(image) else []
    if not content or not (pa.types.is_binary(content[0]) or pa.types.is_large_binary(content[0])):
        problem = f"its column 'image' is {image}, not a struct with binary bytes"
        raise ConfigError(problem, hint=_HINT, source=name)
    if not pa.types.is_integer(label):
        raise ConfigError(f"its column 'label' is {label}, not integers", hint=_HINT, source=name)
    metadata = {str(k): str(v) for k, v in _entry(schema, METADATA_KEY, name, dict).items()}
    return Header(_class_names(schema, name), metadata, parquet.metadata.num_rows)


def _class_names(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """Class names in the metadata, of this project or of the package ``datasets``."""
    names = _entry(schema, CLASS_NAMES_KEY, name, list)
    with suppress(AttributeError, LookupError, TypeError):  # features of another form
        info = _entry(schema, HUGGINGFACE_KEY, name, dict)["info"]
        names = names or info["features"]["label"]["names"]
    if not names:
        raise ConfigError("no class names in its schema's metadata", hint=_HINT, source=name)
    return tuple(map(str, names))


def _entry(schema: pa.Schema, key: bytes, name: str, kind: type) -> Any:
    """An entry of the metadata; an empty one if it is missing or of another type."""
    try:
        value = json.loads((schema.metadata or {}).get(key, b"null"))
    except (ValueError, RecursionError) as error:
        problem = f"{key.decode()!r} in its metadata: {first_line(error)}"
        raise ConfigError(problem, source=name) from None
    return value if isinstance(value, kind) else kind()
