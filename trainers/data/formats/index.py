"""What a layout finds in a source: examples by domain and official split, and what is odd there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from trainers.data.formats.readers import Source
from trainers.data.storage import Store
from trainers.errors import ConfigError

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled image that has not been read yet."""

    source: Source
    path: str
    """Its name in the data set and in reports, in UTF-8; the same wherever the source is taken to
    begin, since validation splits are carved by it."""
    label: int
    """An index into the class names; whoever reads the image checks its range."""
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an image, a class or a list that its owner should know."""

    path: str
    kind: str
    """One or two words, such as `truncated`, `CMYK`, `missing class`, `duplicate`."""
    detail: str = ""
    bad: bool = False
    """Whether the image cannot be used, which counts against the ceiling of `--skip-bad`."""


@dataclass(frozen=True)
class SplitListing:
    """One official split of one domain."""

    domain: str
    split: Split
    class_names: tuple[str, ...]
    """In the order of the labels. They identify classes across domains: folder names or WordNet
    ids; how a class is spoken of in a prompt is a suite's business."""
    examples: tuple[Example, ...]
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Kept in the Parquet files, e.g. `layout`; keys that readers heed: `class_map` (JSON: a class
    of this domain to a list of ID classes) and `crop_pct` (share of an image that evaluation
    crops, 1.0 where images are cropped already)."""
    border: int = 0
    """Pixels to cut off every side before anything else (ObjectNet has a red frame of 2)."""


@dataclass(frozen=True)
class LayoutOptions:
    """What a user may have to say about a source; a layout refuses what it has no use for."""

    domain: str | None = None
    """Name of the domain that is made, for layouts of a single one."""
    domains: tuple[str, ...] = ()
    """Only these, for layouts of several; none means all."""
    split: Split | None = None
    """Of images that no folder or file name assigns to a split."""
    deduplicate: str | None = None
    """A text file of paths to leave out, one a line."""
    class_names: str | None = None
    """A text file of class names, one a line in the order of the labels."""
    image_column: str | None = None
    label_column: str | None = None


def only(options: LayoutOptions, layout: str, *allowed: str) -> None:
    """Check that a user gave no option that the layout would not heed.

    Args:
        options: what was given.
        layout: its name, for the message.
        allowed: the fields of `LayoutOptions` that the layout reads.

    Raises:
        ConfigError: naming the option as it is written on the command line, and its value.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name in allowed or value == option.default:
            continue
        shown = ",".join(value) if isinstance(value, tuple) else value
        flags = (
            ", ".join(f"--{name.replace('_', '-')}" for name in allowed) or "none of these options"
        )
        raise ConfigError(
            f"{layout}: --{option.name.replace('_', '-')} = {shown!r}: the layout {layout} has no "
            f"use for it (it takes {flags})"
        )


def join(*parts: str) -> str:
    """A path or URL of parts, some of which may be empty: the source itself."""
    return "/".join(part.rstrip("/") for part in parts if part)


def beside(found: Sequence[str], most: int = 5) -> str:
    """What lies in a folder instead of what was looked for, for a message."""
    if not found:
        return "nothing"
    shown = ", ".join(found[:most])
    return f"{shown} and {len(found) - most} more" if len(found) > most else shown


def read_text(store: Store, file: str) -> tuple[str, str]:
    """A list or a mapping, and the SHA-256 of the file in hexadecimal.

    Raises:
        ConfigError: it cannot be read, or is no text in UTF-8.
    """
    try:
        data = store.read_bytes(file)
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise ConfigError(f"{store.url}/{file}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{store.url}/{file}: not a text in UTF-8: {error}") from None
