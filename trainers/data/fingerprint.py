"""A fingerprint of the pictures that a run saw."""

from __future__ import annotations

import hashlib

from trainers.config import DataConfig
from trainers.data.roots import domain_files, resolve_root
from trainers.data.schema import open_parquet

SPLITS = ("train", "val")


def data_fingerprint(data: DataConfig) -> dict[str, str]:
    """A hash for each domain and split, of sizes, schemas and statistics in the Parquet footers.

    Footers, not pictures: reading a whole data set to name it would cost more than many a trial.
    """
    store = resolve_root(data.root)
    wanted = [(data.id_domain, split) for split in SPLITS]
    wanted += [(domain, "val") for domain in data.ood_domains]
    fingerprints = {}
    for domain, split in wanted:
        digest = hashlib.sha256()
        for file in domain_files(store, domain, split):
            with open_parquet(store, file) as parquet:
                footer = parquet.metadata.to_dict()
            digest.update(f"{file.base_name} {file.size} {footer}".encode())
        fingerprints[f"{domain}/{split}"] = digest.hexdigest()[:16]
    return fingerprints
