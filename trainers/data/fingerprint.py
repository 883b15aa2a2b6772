"""Fingerprint of the images that a run uses.

All functions raise a ConfigError if a split is missing, or a file of it is not such a Parquet file.
"""

from __future__ import annotations

import hashlib

from trainers.data.config import DataConfig
from trainers.data.domain_files import domain_files
from trainers.data.schema import read_headers
from trainers.data.store import Store, open_root


def data_fingerprint(data: DataConfig) -> dict[str, str]:
    """Hash for each domain and split that a trial reads, by names such as `real/train`."""
    store = open_root(data.root)
    return {"/".join(part): split_fingerprint(store, *part) for part in data.trial_parts}


def image_counts(data: DataConfig, split: str) -> dict[str, int]:
    """Number of images of each domain in a split, from the Parquet footers."""
    store = open_root(data.root)
    headers = {d: read_headers(store, domain_files(store, d, split)) for d in data.domains}
    return {domain: sum(header.rows for header in found) for domain, found in headers.items()}


def split_fingerprint(store: Store, domain: str, split: str) -> str:
    """Hash of the class names, sizes and statistics in the Parquet footers of a split.

    Images are not read, since that would take longer than many a trial. The hash does not depend on
    where the files lie.
    """
    headers = read_headers(store, domain_files(store, domain, split))
    return hashlib.sha256("".join(h.content for h in headers).encode()).hexdigest()[:16]
