"""What a layout finds in a source: examples by domain and official split, and what is odd there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainers.data.layouts.sources import Source

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled picture that has not been read yet."""

    source: Source
    path: str
    """Its name in the data set and in reports, relative to the source."""
    label: int
    """An index into the class names; whoever reads the picture checks its range."""
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a picture, a class or a list that its owner should know."""

    path: str
    kind: str
    """One or two words, such as `truncated`, `CMYK`, `missing class`, `duplicate`."""
    detail: str = ""
    bad: bool = False
    """Whether the picture cannot be used, which counts against the ceiling of `--skip-bad`."""


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
    of this domain to a list of ID classes) and `crop_pct` (share of a picture that evaluation
    crops, 1.0 where pictures are cropped already)."""
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
    """Of pictures that no folder or file name assigns to a split."""
    deduplicate: str | None = None
    """A text file of paths to leave out, one a line."""
    class_names: str | None = None
    """A text file of class names, one a line in the order of the labels."""
    image_column: str | None = None
    label_column: str | None = None
