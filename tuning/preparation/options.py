"""What a user may say to `prepare`, and how many bad images may be left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trainers.data.encoding import EncodeOptions
from trainers.data.formats.index import LayoutOptions
from trainers.errors import ConfigError

_CEILING = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")


@dataclass(frozen=True)
class Ceiling:
    """The most bad images of a domain that may be left out: a number, or a share of all."""

    number: int = 0
    percent: float | None = None
    """Of the domain's images; then `number` does not count."""

    def allows(self, bad: int, images: int) -> bool:
        """Whether that many of so many may be bad."""
        if self.percent is None:
            return bad <= self.number
        return 100 * bad <= self.percent * images

    def __str__(self) -> str:
        return str(self.number) if self.percent is None else f"{self.percent:g}%"


def parse_ceiling(text: str | None) -> Ceiling:
    """The ceiling of `--skip-bad`: `20` images or `0.1%` of them; without it none.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return Ceiling()
    found = _CEILING.fullmatch(text.strip())
    if found and found[2] and float(found[1]) <= 100:
        return Ceiling(percent=float(found[1]))
    if found and not found[2] and found[1].isdigit():
        return Ceiling(int(found[1]))
    raise ConfigError(f"--skip-bad {text!r}: write a number of images, or a share such as 0.1%")


@dataclass(frozen=True)
class PrepareOptions:
    """Everything but the layout, the source and the destination."""

    layout: LayoutOptions = field(default_factory=LayoutOptions)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    val_fraction: float = 0.1
    """Of the official train split, or of test where there is no train; 0 carves nothing."""
    seed: int = 0
    """Of what is carved."""
    skip_bad: Ceiling = field(default_factory=Ceiling)
    shard_size: int = 4096
    """Images in a Parquet file."""
    overwrite: bool = False
    """Whether a domain that was prepared with other settings may be replaced."""

    def check(self) -> None:
        """Raise a `ConfigError` for a number that makes no sense."""
        resize = self.encode.resize
        limits = {
            "--val-fraction": (self.val_fraction, 0 <= self.val_fraction < 1, "0 or more, below 1"),
            "--resize": (resize, resize is None or resize > 0, "at least 1 pixel"),
            "--quality": (self.encode.quality, 1 <= self.encode.quality <= 100, "1 to 100"),
            "--shard-size": (self.shard_size, self.shard_size > 0, "at least 1 image"),
        }
        for option, (value, is_right, meant) in limits.items():
            if not is_right:
                raise ConfigError(f"{option} {value}: {meant}")
