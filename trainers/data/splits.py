"""A validation split for domains without one, since official test splits are for the end only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from heapq import nsmallest

from trainers.data.formats.index import Finding, Index


def carve_validation(indexes: Sequence[Index], fraction: float, seed: int) -> list[Index]:
    """Give every domain without a validation split a part of its train split, or else of its test.

    `round(n * fraction)` images of a class of n are taken, but at least one and never all of them,
    if n is 2 or more. They are those of the smallest hash of seed and path, so the choice depends
    neither on the order of the index nor on other images. Both parts keep the order of the index;
    findings stay with the larger one. A fraction of 0 carves nothing.
    """
    splits = defaultdict(set)
    for index in indexes:
        splits[index.domain].add(index.split)
    carved: list[Index] = []
    for index in indexes:
        there = splits[index.domain]
        divided = "train" if "train" in there else "test"
        if fraction and "val" not in there and index.split == divided:
            carved += _carve(index, fraction, seed)
        else:
            carved.append(index)
    return carved


def _carve(index: Index, fraction: float, seed: int) -> tuple[Index, ...]:
    def rank(number: int) -> bytes:
        path = f"{seed}/{index.examples[number].path}"
        return blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()

    by_class: dict[int, list[int]] = defaultdict(list)
    for number, example in enumerate(index.examples):
        by_class[example.label].append(number)
    held_out: set[int] = set()
    for numbers in by_class.values():
        count = min(max(round(len(numbers) * fraction), 1), len(numbers) - 1)
        held_out.update(nsmallest(count, numbers, key=rank))
    if not held_out:
        nothing = Finding(index.domain, "no validation split", "no class has two images")
        return (replace(index, findings=(*index.findings, nothing)),)
    metadata = {
        **index.metadata,
        "carved_from": index.split,
        "val_fraction": str(fraction),
        "val_seed": str(seed),
    }
    examples = index.examples
    rest = tuple(example for i, example in enumerate(examples) if i not in held_out)
    val = tuple(example for i, example in enumerate(examples) if i in held_out)
    return (
        replace(index, examples=rest, metadata=metadata),
        replace(index, split="val", examples=val, findings=(), metadata=metadata),
    )
