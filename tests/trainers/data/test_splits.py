"""Carving validation and test splits: how many images, which, from where, and the metadata."""

from collections import Counter
from hashlib import blake2b

import pytest

from trainers.data.formats.index import SPLITS, Example, Finding, Index
from trainers.data.formats.readers import FileSource
from trainers.data.splits import carve_splits


def example(path, label):
    return Example(FileSource(path), path, label)


def index_of(counts, split="train", domain="real", **fields):
    """`counts[label]` images of each class, classes interleaved."""
    examples = [
        example(f"{domain}/{split}/{label}/{number}.jpg", label)
        for number in range(max(counts))
        for label, count in enumerate(counts)
        if number < count
    ]
    names = tuple(f"class {label}" for label in range(len(counts)))
    return Index(domain, split, names, tuple(examples), **fields)


def by_split(indexes):
    result = {(item.domain, item.split): item for item in indexes}
    assert len(result) == len(indexes)
    return result


def paths(item):
    return [e.path for e in item.examples]


@pytest.mark.parametrize(
    ("images", "val", "test", "expected"),
    [
        (1, 0.1, 0.0, (1, 0, 0)),
        (1, 0.9, 0.0, (1, 0, 0)),
        (2, 0.1, 0.0, (1, 1, 0)),
        (2, 0.9, 0.0, (1, 1, 0)),
        (3, 0.1, 0.0, (2, 1, 0)),
        (10, 0.1, 0.0, (9, 1, 0)),
        (14, 0.1, 0.0, (13, 1, 0)),
        (16, 0.1, 0.0, (14, 2, 0)),
        (100, 0.1, 0.0, (90, 10, 0)),
        (7, 0.5, 0.0, (3, 4, 0)),
        (1, 0.1, 0.2, (1, 0, 0)),
        (2, 0.1, 0.2, (1, 1, 0)),
        (3, 0.1, 0.2, (1, 1, 1)),
        (24, 0.1, 0.2, (17, 2, 5)),
    ],
)
def test_a_share_of_each_class_is_carved_for_val_before_test(images, val, test, expected):
    splits = carve_splits([index_of([images, 20])], val, seed=0, test_fraction=test)
    counts = Counter((x.split, e.label) for x in splits for e in x.examples)
    assert tuple(counts[split, 0] for split in SPLITS) == expected
    of_val, of_test = round(20 * val), round(20 * test)
    assert tuple(counts[split, 1] for split in SPLITS) == (20 - of_val - of_test, of_val, of_test)


def test_the_images_of_smallest_hash_are_taken():
    original = index_of([10, 30])
    splits = by_split(carve_splits([original], 0.2, seed=7))

    def rank(path):
        return blake2b(b"7/" + path.encode(), digest_size=8).digest()

    for label, carved in ((0, 2), (1, 6)):
        its = [e.path for e in original.examples if e.label == label]
        expected = set(sorted(its, key=rank)[:carved])
        assert {e.path for e in splits["real", "val"].examples if e.label == label} == expected


def test_both_parts_keep_the_order_and_together_are_the_whole():
    original = index_of([10, 30])
    splits = by_split(carve_splits([original], 0.3, 0))
    train, val = paths(splits["real", "train"]), paths(splits["real", "val"])
    position = {path: index for index, path in enumerate(paths(original))}
    assert sorted(train, key=position.__getitem__) == train
    assert sorted(val, key=position.__getitem__) == val
    assert sorted([*train, *val]) == sorted(position)


def test_both_parts_say_how_they_came_to_be():
    original = index_of([4], metadata={"layout": "folders"}, border=2)
    splits = by_split(carve_splits([original], 0.25, 3))
    for split in ("train", "val"):
        assert splits["real", split].metadata == {
            "layout": "folders",
            "carved_from": "train",
            "val_fraction": "0.25",
            "val_seed": "3",
        }
        assert splits["real", split].border == 2
        assert splits["real", split].class_names == original.class_names


def test_findings_stay_with_the_split_they_came_with():
    finding = Finding("real/gone.jpg", "missing file", bad=True)
    splits = by_split(carve_splits([index_of([4], findings=(finding,))], 0.25, 0))
    assert splits["real", "train"].findings == (finding,)
    assert splits["real", "val"].findings == ()


def test_classes_of_single_images_give_no_validation_split_and_say_so():
    original = index_of([1, 1])
    (train,) = carve_splits([original], 0.5, 0)
    assert train.examples == original.examples
    assert [(f.path, f.kind) for f in train.findings] == [("real", "no validation split")]


def test_val_is_the_same_with_and_without_a_test_split():
    alone = by_split(carve_splits([index_of([10, 30])], 0.2, 3))
    both = by_split(carve_splits([index_of([10, 30])], 0.2, 3, test_fraction=0.3))
    assert paths(alone["real", "val"]) == paths(both["real", "val"])
    parts = [paths(both["real", split]) for split in ("train", "val", "test")]
    assert sorted(path for part in parts for path in part) == sorted(paths(index_of([10, 30])))


@pytest.mark.parametrize(
    ("there", "val", "test", "id_domain", "ood"),
    [
        (("train",), 0.1, 0.25, {"train": 8, "val": 1, "test": 3}, {"val": 3, "test": 9}),
        (("train",), 0.1, 0.0, {"train": 11, "val": 1}, {"val": 12}),
        (("train",), 0.0, 0.25, {"train": 9, "test": 3}, {"test": 12}),
        (("train",), 0.0, 0.0, {"train": 12}, {"val": 12}),
        (("train", "test"), 0.25, 0.25, {"train": 9, "val": 3}, {"val": 12}),
        (("train", "val"), 0.25, 0.25, {"train": 9, "test": 3}, {"test": 12}),
        (("train", "val", "test"), 0.25, 0.25, {"train": 12}, {}),
        (("test",), 0.25, 0.25, {"test": 9, "val": 3}, {"test": 9, "val": 3}),
        (("test",), 0.0, 0.25, {"test": 12}, {"test": 12}),
    ],
)
def test_missing_splits_are_made_and_official_ones_kept(there, val, test, id_domain, ood):
    """The sizes are those of the splits that are carved, or carved from; the others stay."""
    for domain, expected in (("real", id_domain), ("sketch", ood)):
        indexes = {split: index_of([12], split, domain) for split in there}
        found = carve_splits(list(indexes.values()), val, 0, test_fraction=test, ood=["sketch"])
        splits = by_split(found)
        kept = there if domain == "real" else [split for split in there if split != "train"]
        whole = {split: 12 for split in kept if split not in expected}
        sizes = {split: len(x.examples) for (_, split), x in splits.items()}
        assert sizes == whole | expected
        for split in whole:
            assert splits[domain, split].examples is indexes[split].examples
        made = {x.metadata["carved_from"] for (_, s), x in splits.items() if s not in there}
        assert made <= {there[0]}
        unread = [f.detail for x in splits.values() for f in x.findings]
        is_unread = len(there) == 3 and domain == "sketch"
        assert unread == (["12 images left out"] if is_unread else [])
