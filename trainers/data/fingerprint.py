"""Fingerprint of the images that a run uses."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
from pyarrow import fs

from trainers.config import DataConfig
from trainers.data.data_root import domain_files, resolve_root
from trainers.data.schema import MEANING, header_of, open_parquet, read_header
from trainers.data.storage import Store

_REQUESTS = 16  # at a time: buckets answer slowly, but answer many


def data_fingerprint(data: DataConfig) -> dict[str, str]:
    """Hash for each domain and split that a trial reads, by names such as `real/train`.

    Raises:
        ConfigError: see `split_fingerprint`.
    """
    store = resolve_root(data.root)
    return {
        f"{domain}/{split}": split_fingerprint(store, domain, split)
        for domain, split in data.trial_parts
    }


def image_counts(data: DataConfig, split: str) -> dict[str, int]:
    """Number of images of each domain in a split, from the Parquet footers.

    Raises:
        ConfigError: see `split_fingerprint`.
    """
    store = resolve_root(data.root)
    with ThreadPoolExecutor(_REQUESTS) as pool:

        def count(domain: str) -> int:
            files = domain_files(store, domain, split)
            return sum(header.rows for header in pool.map(lambda f: read_header(store, f), files))

        return {domain: count(domain) for domain in data.domains}


def split_fingerprint(store: Store, domain: str, split: str) -> str:
    """Hash of the class names, sizes and statistics in the Parquet footers of a split.

    Images are not read, since that would take longer than many a trial. The hash does not depend on
    where the files lie.

    Raises:
        ConfigError: the split is missing, or one of its files is not such a Parquet file.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_REQUESTS) as pool:
        files = domain_files(store, domain, split)
        for line in pool.map(lambda file: _described(store, file), files):
            digest.update(line.encode())
    return digest.hexdigest()[:16]


def _described(store: Store, file: fs.FileInfo) -> str:
    """Properties of the images in a file's footer, without those of its writer."""
    with open_parquet(store, file) as parquet:
        header = header_of(parquet, store.locate(file))
        groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        columns = [_column(group.column(i)) for group in groups for i in range(group.num_columns)]
    meaning = {key: header.metadata.get(key) for key in MEANING}
    rows = [group.num_rows for group in groups]
    return json.dumps([file.base_name, header.class_names, meaning, rows, columns])


def _column(column: pq.ColumnChunkMetaData) -> list[object]:
    statistics = column.statistics
    known = statistics is not None and statistics.has_min_max
    ends = [repr(statistics.min), repr(statistics.max)] if known else None
    return [column.path_in_schema, column.total_compressed_size, ends]
