"""Validation and test splits for domains without; official test splits are for the end only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

from trainers.data.formats.index import Example, Finding, Index, Split

_ABSENT: Mapping[Split, tuple[str, str]] = {
    "val": ("no validation split", "no class has two images"),
    "test": ("no test split", "no class has three images"),
}


def carve_splits(
    indexes: Sequence[Index],
    val_fraction: float,
    seed: int,
    *,
    test_fraction: float = 0.0,
    ood: Collection[str] = (),
) -> list[Index]:
    """Give every domain the validation and test splits that it lacks, as parts of its train split.

    Of a class of n images, `round(n * fraction)` become val and likewise test, but at least one
    each while one stays; none for a fraction of 0. They are those of the smallest hash of seed and
    path, val before test, so the choice depends neither on the order of the index nor on other
    images, and val does not depend on the test fraction. All parts keep the order of the index;
    findings stay with the largest one. A domain without train has val taken from test.

    Nothing reads the train split of an OOD domain, so none of it stays: it is divided into val and
    test in the proportion of the fractions (if one is 0, all of it becomes the other; if both are,
    val), becomes the one of them that is missing, or is left out with a finding if both exist.
    """
    there: dict[str, set[Split]] = defaultdict(set)
    for index in indexes:
        there[index.domain].add(index.split)
    carved: list[Index] = []
    for index in indexes:
        splits = there[index.domain]
        fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        shares = {split: f for split, f in fractions.items() if f and split not in splits}
        if index.domain in ood and "train" in splits:
            if index.split != "train":
                carved.append(_with_unread(index, indexes) if len(splits) == 3 else index)
            elif len(splits) < 3:
                carved += _divide(index, splits, shares, seed)
        elif index.split == ("train" if "train" in splits else "test"):
            carved += _carve(index, shares, seed) if shares else [index]
        else:
            carved.append(index)
    return carved


def _divide(
    train: Index, splits: Collection[Split], shares: Mapping[Split, float], seed: int
) -> list[Index]:
    """The train split of an OOD domain as val and test, or as the one of them that is missing."""
    missing: list[Split] = [split for split in ("val", "test") if split not in splits]
    split = next(iter(shares), missing[0])
    rest, val = train, list[Index]()
    if len(shares) == 2:
        split = "test"
        rest, *val = _carve(train, {"val": shares["val"] / sum(shares.values())}, seed)
    return [replace(rest, split=split, metadata={**rest.metadata, "carved_from": "train"}), *val]


def _with_unread(index: Index, indexes: Sequence[Index]) -> Index:
    """A val split with a finding about the train split beside it, which nothing will read."""
    if index.split != "val":
        return index
    count = sum(
        len(other.examples)
        for other in indexes
        if (other.domain, other.split) == (index.domain, "train")
    )
    unread = Finding(index.domain, "train of an OOD domain", f"{count} images left out")
    return replace(index, findings=(*index.findings, unread))


def _carve(index: Index, shares: Mapping[Split, float], seed: int) -> list[Index]:
    """What is left of a split, and the parts of it that become other splits."""

    def rank(number: int) -> bytes:
        path = f"{seed}/{index.examples[number].path}"
        return blake2b(path.encode(), digest_size=8).digest()

    by_class: dict[int, list[int]] = defaultdict(list)
    for number, example in enumerate(index.examples):
        by_class[example.label].append(number)
    taken: dict[int, Split] = {}
    for numbers in by_class.values():
        left = sorted(numbers, key=rank)
        for split, share in shares.items():
            count = min(max(round(len(numbers) * share), 1), len(left) - 1)
            taken |= dict.fromkeys(left[:count], split)
            left = left[count:]
    made = [split for split in shares if split in taken.values()]
    absent = [Finding(index.domain, *_ABSENT[split]) for split in shares if split not in made]
    rest = replace(index, findings=(*index.findings, *absent))
    if not made:
        return [rest]
    metadata = {**index.metadata, "carved_from": index.split, "val_seed": str(seed)}
    metadata |= {f"{split}_fraction": str(shares[split]) for split in made}

    def part(of: Split | None) -> tuple[Example, ...]:
        return tuple(e for number, e in enumerate(index.examples) if taken.get(number) == of)

    parts = [
        replace(index, split=split, examples=part(split), findings=(), metadata=metadata)
        for split in made
    ]
    return [replace(rest, examples=part(None), metadata=metadata), *parts]
