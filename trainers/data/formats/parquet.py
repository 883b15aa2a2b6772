"""Parquet files of images as Hugging Face stores them, and as this project does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainers.data.formats.index import (
    SPLIT_WORDS,
    SPLITS,
    Example,
    Finding,
    Index,
    LayoutOptions,
    Split,
    check_distinct,
    check_options,
    domain_name,
    read_class_names_file,
    split_in_words,
)
from trainers.data.formats.readers import ParquetSource, encoded_images, stream_parquet
from trainers.data.schema import declared_names, features_of, holds_images, metadata_of
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean, first_line, listed

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png")
LABEL_NAMES = ("label", "labels", "cls", "fine_label")

_KEPT = ("class_map", "crop_pct", "license", "attribution")
"""Metadata of this project's own files that stay true when they are prepared again."""


@dataclass(frozen=True)
class _File:
    """One file without its images."""

    path: str
    column: str  # of the images
    names: Sequence[str | None]  # of the images
    labels: Sequence[int | str | None]
    without_image: frozenset[int]  # rows
    labels_are_names: bool
    class_names: tuple[str, ...]  # in its metadata; empty if there are none
    metadata: Mapping[str, str]


def read_parquet(source: Store, options: LayoutOptions) -> list[Index]:
    """Index `<source>/**/*.parquet`; names of files or folders give the split.

    Labels are integers, with class names in the files or in `--class-names`; or they are names
    themselves, whose order is that of `--class-names` or else alphabetical.

    Raises:
        ConfigError: no such files, several data sets in one folder, unknown columns, files with
            different class names, or no labels at all.
    """
    check_options(
        options, "parquet", "domain", "split", "class_names", "image_column", "label_column"
    )
    domain = domain_name(source, options)
    by_split = {
        split: [_read_file(source, path, options) for path in paths]
        for split, paths in _find_files(source, options.split or "train").items()
    }
    files = [file for of_split in by_split.values() for file in of_split]
    class_names = _class_names(source, options, files)

    # Hugging Face sets all labels of a split to -1 if they are kept secret.
    unlabelled = []
    for split, of_split in list(by_split.items()):
        labels = [label for file in of_split for label in file.labels]
        if labels and all(label in (-1, None) for label in labels):
            detail = f"{split}: left out, for none of its {len(labels)} images has a label"
            unlabelled.append(Finding(of_split[0].path, "unlabelled split", detail))
            del by_split[split]
    if not by_split:
        raise ConfigError("no image has a label, all are -1 or missing", source=source.url)
    first, *others = (
        _index(source, domain, split, by_split[split], class_names)
        for split in SPLITS
        if split in by_split
    )
    return [replace(first, findings=(*unlabelled, *first.findings)), *others]


def _find_files(source: Store, otherwise: Split) -> dict[Split, list[str]]:
    """Parquet files by split, all of one data set."""
    found: dict[Split, list[str]] = {}
    data_sets: dict[str, str] = {}  # folder that holds all splits, and one of its files
    for info in source.list(recursive=True):
        path = source.relative(info)
        *folders, name = path.split("/")
        if not info.is_file or not name.lower().endswith(".parquet"):
            continue
        if any(part.startswith(".") for part in (*folders, name)):
            continue
        split = split_in_words(name.removesuffix(".parquet"))
        if split and folders and SPLIT_WORDS.get(folders[-1].lower()) == split:
            folders = folders[:-1]
        elif not split:
            depths = [i for i, folder in enumerate(folders) if folder.lower() in SPLIT_WORDS]
            if depths:
                split = SPLIT_WORDS[folders[depths[-1]].lower()]
                folders = folders[: depths[-1]]
        found.setdefault(split or otherwise, []).append(path)
        data_sets.setdefault("/".join(folders), path)
    if not found:
        there = listed(source.relative(info) for info in source.list())
        raise ConfigError(f"no *.parquet; there is {there}", source=source.url)
    if len(data_sets) > 1:
        raise ConfigError(
            f"{listed(data_sets.values())} belong to several data sets",
            hint="give the folder of one, with --domain for its name",
            source=source.url,
        )
    return found


def _read_file(source: Store, path: str, options: LayoutOptions) -> _File:
    """Read the small columns of a file.

    Columns are found by the features that the package `datasets` writes, or by usual names.
    """
    where = f"{source.url}: {path}"
    try:
        with stream_parquet(source, path) as parquet:
            schema = parquet.schema_arrow
            if len(set(schema.names)) < len(schema.names):
                problem = f"several of its columns have one name: {', '.join(schema.names)}"
                raise ConfigError(problem, source=where)
            features = features_of(schema, where)
            image = _column("image", options.image_column, schema, features, where)
            label = _column("label", options.label_column, schema, features, where)

            image_type, label_type = schema.field(image).type, schema.field(label).type
            if not holds_images(image_type):
                raise ConfigError(
                    f"the column {image!r} holds {image_type}, not encoded images (binary, or a "
                    "struct with bytes)",
                    key="--image-column",
                    source=where,
                )
            leaf, name_leaf = image, None
            if pa.types.is_struct(image_type):
                leaf = f"{image}.bytes"
                inner = {field.name: field.type for field in image_type}
                name_leaf = f"{image}.path" if _is_text(inner.get("path")) else None
            if pa.types.is_dictionary(label_type):
                label_type = label_type.value_type
            if not pa.types.is_integer(label_type) and not _is_text(label_type):
                raise ConfigError(
                    f"the column {label!r} holds {label_type}, neither integers nor names",
                    key="--label-column",
                    source=where,
                )
            table = parquet.read(columns=[label, *([name_leaf] if name_leaf else [])])
            without_image = _rows_without_image(parquet, leaf)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"cannot be read: {first_line(error)}", source=where) from None
    names = pc.struct_field(table[image], "path").to_pylist() if name_leaf else None
    return _File(
        path,
        image,
        names or [None] * table.num_rows,
        table[label].to_pylist(),
        without_image,
        _is_text(label_type),
        declared_names(schema, label, where),
        metadata_of(schema, where),
    )


def _column(
    what: str, chosen: str | None, schema: pa.Schema, features: dict[str, Any], where: str
) -> str:
    """The column of images or of labels: the chosen one, or the only feature, or a usual name."""
    usual = IMAGE_NAMES if what == "image" else LABEL_NAMES
    kind = "Image" if what == "image" else "ClassLabel"
    option = f"--{what}-column"
    if chosen is not None:
        if chosen not in schema.names:
            problem = f"no such column{did_you_mean(chosen, schema.names)}"
            raise ConfigError(problem, key=option, value=chosen, source=where)
        return chosen
    declared = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == kind and name in schema.names
    ]
    candidates = declared or schema.names
    named = declared if len(declared) == 1 else [name for name in usual if name in candidates]
    if not named:
        problem = f"is needed: its columns are {', '.join(candidates)}"
        raise ConfigError(problem, key=option, source=where)
    return named[0]


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _rows_without_image(parquet: pq.ParquetFile, leaf: str) -> frozenset[int]:
    """Rows whose image is null; images are read only if the statistics do not rule them out."""
    footer = parquet.metadata
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf]
    if all(s is not None and s.has_null_count and s.null_count == 0 for s in statistics):
        return frozenset()
    rows, first = [], 0
    for batch in parquet.iter_batches(64, columns=[leaf]):
        nulls = encoded_images(batch).is_null().to_numpy(zero_copy_only=False)
        rows += (np.flatnonzero(nulls) + first).tolist()
        first += batch.num_rows
    return frozenset(rows)


def _class_names(source: Store, options: LayoutOptions, files: Sequence[_File]) -> tuple[str, ...]:
    """`--class-names`, or those of the files, which must agree, or all labels that are names."""
    if options.class_names is not None:
        return read_class_names_file(options.class_names)
    named = [file for file in files if file.class_names]
    for file in named:
        if file.class_names != named[0].class_names:
            problem = f"{named[0].path} and {file.path} have different class names"
            raise ConfigError(problem, source=source.url)
    if named:
        check_distinct(named[0].class_names, f"{source.url}: {named[0].path}")
        return named[0].class_names
    for file in files:
        if not file.labels_are_names:
            problem = f"is needed: {file.path} does not name the classes of its integer labels"
            raise ConfigError(problem, key="--class-names", source=source.url)
    distinct = {label for file in files for label in file.labels if label is not None}
    return tuple(sorted(map(str, distinct)))


def _index(
    source: Store, domain: str, split: Split, files: Sequence[_File], class_names: tuple[str, ...]
) -> Index:
    by_name = {name: label for label, name in enumerate(class_names)}
    examples: list[Example] = []
    findings: list[Finding] = []
    used: set[str] = set()
    for file in files:
        repeated = 0
        for row, (name, label) in enumerate(zip(file.names, file.labels, strict=True)):
            known = name if name and name not in used else f"{file.path}#{row}"
            repeated += bool(name) and known != name
            used.add(known)
            if isinstance(label, str) and label not in by_name:
                problem = f"the label {label!r} is not a class{did_you_mean(label, by_name)}"
                raise ConfigError(problem, source=f"{source.url}: {file.path}, row {row}")
            if row in file.without_image:
                detail = f"{file.path}, row {row}" if known == name else ""
                findings.append(Finding(known, "no image", detail, bad=True))
            elif label is None:
                findings.append(Finding(known, "no label", bad=True))
            else:
                number = by_name[label] if isinstance(label, str) else label
                location = ParquetSource(file.path, row, file.column)
                examples.append(Example(location, known, number))
        if repeated:
            detail = f"{repeated} names of images repeat; these go by file and row"
            findings.append(Finding(file.path, "duplicate", detail))
    kept = {key: files[0].metadata[key] for key in _KEPT if key in files[0].metadata}
    metadata = kept | {"layout": "parquet"}
    return Index(domain, split, class_names, tuple(examples), tuple(findings), metadata)
