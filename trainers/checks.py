"""What can be known to fail before a worker starts, from configurations, headers and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pyarrow import fs

from trainers.config import DataConfig, TrialConfig
from trainers.data.class_map import domain_class_map
from trainers.data.roots import EMBEDDED, domain_files, resolve_root
from trainers.data.schema import Header, check_labels
from trainers.data.shard_cache import check_limit
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean
from trainers.methods import check_method_fits
from trainers.models import ModelConfig, check_model

EMBEDDED_DOMAINS = ("real", "painting", "clipart", "infograph", "sketch")

Part = tuple[str, str]
"""A domain and a split."""

_REQUESTS = 16  # at a time: buckets answer slowly, but answer many


def check_trial(config: TrialConfig) -> None:
    """Raise a `ConfigError` for a model, a method or data that cannot work, alone or together.

    Weights are not loaded, pictures not read, and the embedded benchmark not built.
    """
    check_trials([config])


def check_trials(configs: Iterable[TrialConfig]) -> None:
    """`check_trial` of many; models and data that they have in common are looked at once."""
    models: list[ModelConfig] = []
    data: list[DataConfig] = []
    for config in configs:
        if config.data not in data:
            check_data(config.data)
            data.append(config.data)
        if config.model not in models:  # after the data: it may fetch weights
            check_model(config.model)
            models.append(config.model)
        check_method_fits(config.method, config.model)


def check_data(data: DataConfig, parts: Sequence[Part] | None = None) -> None:
    """Raise a `ConfigError` for data that are missing, unfinished, mislabelled or too large.

    Args:
        data: the suite with them: its class names and the class maps of all domains are made.
        parts: what will be read, by default what a trial reads; the ID domain's first.
    """
    if parts is None:
        parts = [(data.id_domain, "train"), *((domain, "val") for domain in data.domains)]
    if data.root == EMBEDDED:
        for domain, _ in parts:
            if domain not in EMBEDDED_DOMAINS:
                raise ConfigError(
                    f"data: the embedded benchmark has no domain {domain!r}"
                    f"{did_you_mean(domain, EMBEDDED_DOMAINS)}"
                )
        return
    store = resolve_root(data.root)
    files = {part: domain_files(store, *part) for part in parts}
    check_limit(
        store, [f for of_part in files.values() for f in of_part], limit_bytes=data.cache_bytes
    )
    headers = _headers(store, files)
    id_classes = headers[parts[0]].class_names
    data.rules.prompts(id_classes)
    for (domain, split), header in headers.items():
        if not header.rows:
            raise ConfigError(f"{store.url}/{domain}/{split}: it has no pictures")
        domain_class_map(data, id_classes, domain, header)


def _headers(store: Store, files: Mapping[Part, Sequence[fs.FileInfo]]) -> dict[Part, Header]:
    """Of each part, with the rows of all its files, whose labels are looked at on the way."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        every = pool.map(
            lambda file: check_labels(store, file), [f for part in files.values() for f in part]
        )
        by_part = {part: [next(every) for _ in of_part] for part, of_part in files.items()}
    merged = {}
    for (domain, split), headers in by_part.items():
        if len({header.class_names for header in headers}) > 1:
            raise ConfigError(
                f"{store.url}/{domain}/{split}: its files differ in their class names"
            )
        rows = sum(header.rows for header in headers)
        merged[domain, split] = Header(headers[0].class_names, headers[0].metadata, rows)
    return merged
