"""Where a configuration's images lie: a folder or URL, the embedded benchmark, or sources."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from trainers.data.domain_files import EMBEDDED, draw, read_record, stored_root
from trainers.data.sources import Source
from trainers.data.store import Store

logger = logging.getLogger(__name__)


def resolve_root(
    root: str | Mapping[str, Source], parts: Collection[tuple[str, str]] = ()
) -> Store:
    """The folder of a path or URL, of `openmoji`, or of sources by domain, the ID domain first.

    The parts of `openmoji`, the embedded benchmark, are drawn in the user's cache folder when they
    are first read, and sources are prepared in that of `datasets`.

    Args:
        parts: what a command is going to read, by domain and split; given once, at its start. They
            are drawn together, with a progress bar, and sources are listed again.

    Raises:
        ConfigError: the packages of the embedded benchmark are not installed; a source cannot be
            read, or has other images than those that were prepared.
    """
    store = stored_root(root)
    if not isinstance(root, str):
        from trainers.data.prepare import Options, prepare

        made = [(read_record(store.at(domain)) or {}).get("status") for domain in root]
        if parts or {*made} != {"done"}:
            report = prepare(root, store, Options(), id_domain=next(iter(root)))
            for domain in report.domains:
                if domain.left_out:
                    where = f"{store.url}/{domain.domain}/bad.csv"
                    logger.warning("%d files were left out, see %s", domain.left_out, where)
    elif root == EMBEDDED:
        draw(store, parts, progress=True)
    return store
