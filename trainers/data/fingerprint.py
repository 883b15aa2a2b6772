"""A fingerprint of the pictures that a run saw."""

from __future__ import annotations

import hashlib

import pyarrow.parquet as pq

from trainers.config import DataConfig
from trainers.data.pictures import parquet_files
from trainers.data.roots import resolve_root

SPLITS = ("train", "val")


def data_fingerprint(data: DataConfig) -> dict[str, str]:
    """A hash for each domain and split, of sizes, schemas and statistics in the Parquet footers.

    Footers, not pictures: reading a whole data set to name it would cost more than many a trial.
    """
    root = resolve_root(data.root)
    wanted = [(data.id_domain, split) for split in SPLITS]
    wanted += [(domain, "val") for domain in data.ood_domains]
    fingerprints = {}
    for domain, split in wanted:
        digest = hashlib.sha256()
        for file in parquet_files(root, domain, split):
            footer = pq.read_metadata(file)
            digest.update(f"{file.name} {file.stat().st_size} {footer.to_dict()}".encode())
        fingerprints[f"{domain}/{split}"] = digest.hexdigest()[:16]
    return fingerprints
