"""Where a configuration's images lie: a folder or URL, or the embedded benchmark."""

from __future__ import annotations

from collections.abc import Collection

from trainers.data.domain_files import EMBEDDED, draw, stored_root
from trainers.data.store import Store


def resolve_root(root: str, parts: Collection[tuple[str, str]] = ()) -> Store:
    """The folder of a path or URL, or of `openmoji`.

    The parts of `openmoji`, the embedded benchmark, are drawn in the user's cache folder when they
    are first read.

    Args:
        parts: what a command is going to read, by domain and split; given once, at its start. They
            are drawn together, with a progress bar.

    Raises:
        ConfigError: the packages of the embedded benchmark are not installed.
    """
    store = stored_root(root)
    if root == EMBEDDED:
        draw(store, parts, progress=True)
    return store
