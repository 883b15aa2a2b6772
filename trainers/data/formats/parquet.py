"""Parquet files of images as Hugging Face keeps them, and as this project does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from trainers.data.formats.class_names import read_class_names_file, refuse_duplicates
from trainers.data.formats.index import (
    Example,
    Finding,
    LayoutOptions,
    Split,
    SplitListing,
    beside,
    only,
)
from trainers.data.formats.naming import SPLIT_WORDS, SPLITS, domain_of, split_in_words
from trainers.data.formats.parquet_columns import Columns, find_columns
from trainers.data.formats.readers import ParquetSource, stream_parquet
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean, first_line

_KEPT = ("class_map", "crop_pct", "license", "attribution")
"""Of the metadata of this project's own files, what remains true of the images."""


@dataclass(frozen=True)
class _Rows:
    """The small columns of a file: everything but its images."""

    names: Sequence[str | None]
    labels: Sequence[int | str | None]
    captions: Sequence[str | None]
    missing: frozenset[int]
    """Rows without an image."""


def parquet(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """List `<source>/**/*.parquet`, of which names or folders tell the split.

    Labels are integers, with names of classes in the files or in `--class-names`; or they are
    names themselves, whose order is theirs in `--class-names` or else in the alphabet.

    Raises:
        ConfigError: no such files, several data sets in one folder, unknown columns, files that
            disagree on the classes, or no labels at all.
    """
    only(options, "parquet", "domain", "split", "class_names", "image_column", "label_column")
    domain = domain_of(source, options)
    by_split = _files(source, options.split or "train")
    columns = {p: find_columns(source, p, options) for paths in by_split.values() for p in paths}
    rows = {path: _read_rows(source, found) for path, found in columns.items()}
    class_names = _class_names(source, options, columns, rows)
    unlabelled = _unlabelled(by_split, rows)
    if len(unlabelled) == len(by_split):
        raise ConfigError(f"{source.url}: no image has a label, all say -1 or nothing")
    first, *others = (
        _listing(source, domain, split, by_split[split], columns, rows, class_names)
        for split in SPLITS
        if split in by_split and split not in unlabelled
    )
    return [replace(first, findings=(*unlabelled.values(), *first.findings)), *others]


def _unlabelled(
    by_split: Mapping[Split, Sequence[str]], rows: Mapping[str, _Rows]
) -> dict[Split, Finding]:
    """The splits whose labels are kept secret, as Hugging Face has them: all are -1."""
    found: dict[Split, Finding] = {}
    for split, paths in by_split.items():
        labels = [label for path in paths for label in rows[path].labels]
        if labels and all(label in (-1, None) for label in labels):
            detail = f"{split}: left out, for none of its {len(labels)} images has a label"
            found[split] = Finding(paths[0], "unlabelled split", detail)
    return found


def _files(source: Store, otherwise: Split) -> dict[Split, list[str]]:
    found: dict[Split, list[str]] = {}
    homes: dict[str, str] = {}
    for info in source.list(recursive=True):
        path = source.relative(info)
        *folders, name = path.split("/")
        if info.type != fs.FileType.File or not name.lower().endswith(".parquet"):
            continue
        if any(part.startswith(".") for part in (*folders, name)):
            continue
        split, home = _split_and_home(folders, name)
        found.setdefault(split or otherwise, []).append(path)
        homes.setdefault(home, path)
    if not found:
        there = [source.relative(info) for info in source.list()]
        raise ConfigError(f"{source.url}: no *.parquet; there is {beside(there)}")
    if len(homes) > 1:
        raise ConfigError(
            f"{source.url}: {beside(list(homes.values()))} are of several data sets, "
            "and a domain is one; give the folder of one, with --domain for its name"
        )
    return found


def _split_and_home(folders: Sequence[str], name: str) -> tuple[Split | None, str]:
    """The split of a file, and the folder that holds all splits of its data set."""
    if split := split_in_words(name.removesuffix(".parquet")):
        inside = folders[-1:] and SPLIT_WORDS.get(folders[-1].lower()) == split
        return split, "/".join(folders[:-1] if inside else folders)
    for depth in range(len(folders) - 1, -1, -1):
        if folders[depth].lower() in SPLIT_WORDS:
            return SPLIT_WORDS[folders[depth].lower()], "/".join(folders[:depth])
    return None, "/".join(folders)


def _read_rows(source: Store, columns: Columns) -> _Rows:
    leaves = [
        leaf for leaf in (columns.name_leaf, columns.label, columns.caption) if leaf is not None
    ]
    try:
        with stream_parquet(source, columns.path) as parquet:
            table = parquet.read(columns=leaves)
            missing = frozenset(_rows_without_image(parquet, columns))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"{source.url}: {columns.path} cannot be read: {first_line(error)}"
        ) from None
    nothing = [None] * table.num_rows
    names = nothing
    if columns.name_leaf is not None:
        names = pc.struct_field(table[columns.image], "path").to_pylist()
    captions = nothing if columns.caption is None else table[columns.caption].to_pylist()
    return _Rows(names, table[columns.label].to_pylist(), captions, missing)


def _rows_without_image(parquet: pq.ParquetFile, columns: Columns) -> Iterator[int]:
    """The row groups' statistics say whether a search is worth it."""
    first = 0
    for index in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(index)
        if _null_count(group, columns.image_leaf) != 0:
            row = first
            for batch in parquet.iter_batches(64, [index], columns=[columns.image_leaf]):
                column = batch.column(0)
                if pa.types.is_struct(column.type):
                    column = pc.struct_field(column, "bytes")
                yield from (row + i for i, null in enumerate(column.is_null()) if null.as_py())
                row += batch.num_rows
        first += group.num_rows


def _null_count(group: pq.RowGroupMetaData, leaf: str) -> int | None:
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == leaf:
            statistics = column.statistics
            known = statistics is not None and statistics.has_null_count
            return statistics.null_count if known else None
    return None


def _class_names(
    source: Store,
    options: LayoutOptions,
    columns: Mapping[str, Columns],
    rows: Mapping[str, _Rows],
) -> tuple[str, ...]:
    if options.class_names is not None:
        return read_class_names_file(options.class_names)
    named = {path: found.class_names for path, found in columns.items() if found.class_names}
    if named:
        (first, names), *others = named.items()
        for path, other_names in others:
            if other_names != names:
                raise ConfigError(f"{source.url}: {first} and {path} name different classes")
        refuse_duplicates(names, f"{source.url}: {first}")
        return names
    for path, found in columns.items():
        if not found.labels_are_names:
            raise ConfigError(
                f"{source.url}: --class-names is missing: {path} does not say what the integers "
                f"of its column {found.label!r} mean"
            )
    distinct = {label for held in rows.values() for label in held.labels if label is not None}
    return tuple(sorted(str(label) for label in distinct))


def _listing(
    source: Store,
    domain: str,
    split: Split,
    paths: Sequence[str],
    columns: Mapping[str, Columns],
    rows: Mapping[str, _Rows],
    class_names: tuple[str, ...],
) -> SplitListing:
    labels = {name: label for label, name in enumerate(class_names)}
    examples: list[Example] = []
    findings: list[Finding] = []
    used: set[str] = set()
    for path in paths:
        held, image = rows[path], columns[path].image
        repeated = 0
        for row, (name, label) in enumerate(zip(held.names, held.labels, strict=True)):
            known = name if name and name not in used else f"{path}#{row}"
            repeated += bool(name) and known != name
            used.add(known)
            if row in held.missing:
                detail = f"{path}, row {row}" if known == name else ""
                findings.append(Finding(known, "no image", detail, bad=True))
            elif label is None:
                findings.append(Finding(known, "no label", "", bad=True))
            else:
                number = _number(source, f"{path}, row {row}", label, labels)
                examples.append(
                    Example(ParquetSource(path, row, image), known, number, held.captions[row])
                )
        if repeated:
            detail = f"{repeated} names of images repeat; these go by file and row"
            findings.append(Finding(path, "duplicate", detail))
    kept = {key: columns[paths[0]].metadata.get(key) for key in _KEPT}
    metadata = {key: value for key, value in kept.items() if value is not None}
    return SplitListing(
        domain,
        split,
        class_names,
        tuple(examples),
        tuple(findings),
        metadata | {"layout": "parquet"},
    )


def _number(source: Store, where: str, label: int | str, labels: Mapping[str, int]) -> int:
    if isinstance(label, int):
        return label
    if label not in labels:
        raise ConfigError(
            f"{source.url}: {where}: the label {label!r} is no name of a class"
            f"{did_you_mean(label, labels)}"
        )
    return labels[label]
