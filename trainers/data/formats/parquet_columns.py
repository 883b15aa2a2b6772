"""Which columns of a Parquet file are images, labels and captions, and what the labels mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trainers.data.formats.index import LayoutOptions
from trainers.data.formats.readers import stream_parquet
from trainers.data.schema import CLASS_NAMES_KEY, HUGGINGFACE_KEY, METADATA_KEY
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean, first_line

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png")
LABEL_NAMES = ("label", "labels", "cls", "fine_label")
_CAPTION = "caption"


@dataclass(frozen=True)
class Columns:
    """What one file offers."""

    path: str
    image: str
    image_leaf: str
    """Parquet's path of the encoded images, `image.bytes` or `image`."""
    name_leaf: str | None
    """Parquet's path of the images' names, if there are some."""
    label: str
    labels_are_names: bool
    caption: str | None
    class_names: tuple[str, ...] | None
    metadata: dict[str, str]


def find_columns(source: Store, path: str, options: LayoutOptions) -> Columns:
    """What the schema of a file says, by its features as Hugging Face has them or by usual names.

    Raises:
        ConfigError: no Parquet file, no such column or several, or a column of another type.
    """
    schema = _schema(source, path)
    where = f"{source.url}: {path}"
    entries = schema.metadata or {}
    features = _json(entries, HUGGINGFACE_KEY, where).get("info", {}).get("features", {})
    if not isinstance(features, dict):
        features = {}
    image = options.image_column or _guess(where, schema, features, "Image", IMAGE_NAMES)
    label = options.label_column or _guess(where, schema, features, "ClassLabel", LABEL_NAMES)
    for option, name in (("image", image), ("label", label)):
        if name not in schema.names:
            raise ConfigError(
                f"{where}: --{option}-column = {name!r} is no column of it"
                f"{did_you_mean(name, schema.names)}"
            )
    image_leaf, name_leaf = _leaves(where, schema.field(image))
    return Columns(
        path,
        image,
        image_leaf,
        name_leaf,
        label,
        _labels_are_names(where, schema.field(label)),
        _CAPTION if _CAPTION in schema.names and _is_text(schema.field(_CAPTION).type) else None,
        _class_names(where, entries, features.get(label)),
        {str(k): str(v) for k, v in _json(entries, METADATA_KEY, where).items()},
    )


def _schema(source: Store, path: str) -> pa.Schema:
    try:
        with stream_parquet(source, path) as parquet:
            return parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"{source.url}: {path} cannot be read as Parquet: {first_line(error)}"
        ) from None


def _json(entries: dict[bytes, bytes], key: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(entries.get(key, b"{}"))
    except ValueError as error:
        raise ConfigError(f"{where}: {key.decode()!r} in its metadata: {error}") from None
    return value if isinstance(value, dict) else {}


def _guess(
    where: str, schema: pa.Schema, features: dict[str, Any], kind: str, usual: Sequence[str]
) -> str:
    """The one column of a kind; where there are several or none, the first of the usual names."""
    option = "--image-column" if kind == "Image" else "--label-column"
    declared = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == kind and name in schema.names
    ]
    if len(declared) == 1:
        return declared[0]
    candidates = declared or schema.names
    named = next((name for name in usual if name in candidates), None)
    if named is None:
        wanted = "several columns could be meant" if declared else f"no column {'/'.join(usual)}"
        raise ConfigError(
            f"{where}: {option} is missing: {wanted}; its columns are {', '.join(candidates)}"
        )
    return named


def _leaves(where: str, field: pa.Field) -> tuple[str, str | None]:
    if _is_binary(field.type):
        return field.name, None
    if pa.types.is_struct(field.type):
        inner = {field.type.field(i).name: field.type.field(i) for i in range(len(field.type))}
        if "bytes" in inner and _is_binary(inner["bytes"].type):
            named = "path" in inner and _is_text(inner["path"].type)
            return f"{field.name}.bytes", f"{field.name}.path" if named else None
    raise ConfigError(
        f"{where}: --image-column = {field.name!r} holds {field.type}, neither encoded images "
        "(binary) nor a struct with them as bytes"
    )


def _labels_are_names(where: str, field: pa.Field) -> bool:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_integer(kind):
        return False
    if _is_text(kind):
        return True
    raise ConfigError(
        f"{where}: --label-column = {field.name!r} holds {field.type}, neither integers nor names"
    )


def _class_names(
    where: str, entries: dict[bytes, bytes], feature: object
) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    if names is None and CLASS_NAMES_KEY in entries:
        try:
            names = json.loads(entries[CLASS_NAMES_KEY])
        except ValueError as error:
            raise ConfigError(f"{where}: 'class_names' in its metadata: {error}") from None
    return None if names is None else tuple(str(name) for name in names)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
