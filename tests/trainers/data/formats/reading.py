"""Reads a source in a layout, for the tests of all layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from trainers.data.formats import LAYOUTS
from trainers.data.formats.index import Index, LayoutOptions
from trainers.data.formats.readers import read_sources
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def read(layout: str, root: str | Path, **options: Any) -> list[Index]:
    """What a layout finds."""
    return LAYOUTS[layout].read(open_store(root), LayoutOptions(**options))


def read_one(layout: str, root: str | Path, **options: Any) -> Index:
    """What a layout finds if that is a single split."""
    (index,) = read(layout, root, **options)
    return index


def refusal(layout: str, root: str | Path, **options: Any) -> ConfigError:
    """The error, of one line, with which a layout refuses a source."""
    with pytest.raises(ConfigError) as caught:
        read(layout, root, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def read_in_bucket(layout: str, root: Path, **options: Any) -> list[Index]:
    """What a layout finds in a copy of the folder on a file system of fsspec's."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{root}/", f"/bucket/{root.name}", recursive=True)
    try:
        return read(layout, f"memory://bucket/{root.name}", **options)
    finally:
        memory.rm("/bucket", recursive=True)


def table(index: Index) -> list[tuple[str, int]]:
    """Path and label of each image."""
    return [(example.path, example.label) for example in index.examples]


def images(root: str | Path, index: Index) -> list[bytes | OSError]:
    """The encoded images."""
    return list(read_sources(open_store(root), (e.source for e in index.examples)))


def kinds(index: Index) -> list[tuple[str, str, bool]]:
    """Path, kind and badness of each finding."""
    return [(finding.path, finding.kind, finding.bad) for finding in index.findings]
