"""A validation split for whatever has none, because official test splits are for the end only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from heapq import nsmallest

from trainers.data.formats.index import Finding, Index, Split
from trainers.errors import ConfigError


def carve_validation(listings: Sequence[Index], fraction: float, seed: int) -> list[Index]:
    """Give every domain without a validation split a part of its train split, or else of its test.

    `round(n * fraction)` images of a class of n, but at least one and never all of them, where n
    is 2 or more. Which ones depends on the seed and their paths alone, neither on the order of the
    listing nor on other images. Both parts keep the order of the listing, their metadata say
    what was done, and findings stay with the larger one.

    Args:
        listings: at most one for each domain and split.
        fraction: of each class's images, from 0 (nothing is carved) to less than 1.
        seed: of the choice.

    Raises:
        ConfigError: a fraction outside of that range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"--val-fraction = {fraction}: a share from 0 to less than 1 is expected")
    if fraction == 0:
        return list(listings)
    chosen = _to_carve_from(listings)
    carved: list[Index] = []
    for listing in listings:
        if chosen.get(listing.domain) == listing.split:
            carved += _carve(listing, fraction, seed)
        else:
            carved.append(listing)
    return carved


def _to_carve_from(listings: Sequence[Index]) -> dict[str, Split]:
    """For each domain without a validation split, its train split, or else the test split."""
    splits: dict[str, list[Split]] = defaultdict(list)
    for listing in listings:
        splits[listing.domain].append(listing.split)
    return {
        domain: "train" if "train" in there else "test"
        for domain, there in splits.items()
        if "val" not in there
    }


def _carve(listing: Index, fraction: float, seed: int) -> tuple[Index, ...]:
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, example in enumerate(listing.examples):
        by_class[example.label].append(index)
    held_out = {
        index
        for indices in by_class.values()
        for index in nsmallest(
            _number(len(indices), fraction),
            indices,
            key=lambda index: _rank(listing.examples[index].path, seed),
        )
    }
    if not held_out:
        nothing = Finding(listing.domain, "no validation split", "no class has two images")
        return (replace(listing, findings=(*listing.findings, nothing)),)
    metadata = {
        **listing.metadata,
        "carved_from": listing.split,
        "val_fraction": str(fraction),
        "val_seed": str(seed),
    }
    examples = listing.examples
    rest = tuple(example for i, example in enumerate(examples) if i not in held_out)
    val = tuple(example for i, example in enumerate(examples) if i in held_out)
    return (
        replace(listing, examples=rest, metadata=metadata),
        replace(listing, split="val", examples=val, findings=(), metadata=metadata),
    )


def _number(images: int, fraction: float) -> int:
    """How many of a class are held out."""
    if images < 2:
        return 0
    return min(max(round(images * fraction), 1), images - 1)


def _rank(path: str, seed: int) -> bytes:
    return blake2b(f"{seed}/{path}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
