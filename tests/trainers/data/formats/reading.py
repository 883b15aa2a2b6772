"""Reads a source in a layout, for the tests of all layouts."""

import fsspec
import pytest

from trainers.data.formats import LAYOUTS
from trainers.data.formats.index import LayoutOptions
from trainers.data.formats.readers import read_sources
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def read(layout, root, **options):
    """What a layout finds."""
    return LAYOUTS[layout].read(open_store(root), LayoutOptions(**options))


def read_one(layout, root, **options):
    """What a layout finds if that is a single split."""
    (index,) = read(layout, root, **options)
    return index


def refusal(layout, root, **options):
    """The error, of one line, with which a layout refuses a source."""
    with pytest.raises(ConfigError) as caught:
        read(layout, root, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def read_in_bucket(layout, root, **options):
    """What a layout finds in a copy of the folder on a file system of fsspec's."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{root}/", f"/bucket/{root.name}", recursive=True)
    try:
        return read(layout, f"memory://bucket/{root.name}", **options)
    finally:
        memory.rm("/bucket", recursive=True)


def table(index):
    """Path and label of each image."""
    return [(example.path, example.label) for example in index.examples]


def images(root, index):
    """The encoded images."""
    return list(read_sources(open_store(root), (e.source for e in index.examples)))


def kinds(index):
    """Path, kind and badness of each finding."""
    return [(finding.path, finding.kind, finding.bad) for finding in index.findings]
