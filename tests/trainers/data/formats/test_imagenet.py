"""ImageNet and its shifts: labels by WordNet id or by number, and folders that do not fit."""

from importlib.resources import files

import pytest
from timm.data import ImageNetInfo

from tests.trainers.data.formats.reading import kinds, read, read_one, refusal, table
from tests.trainers.data.formats.trees import (
    ACORN,
    GOLDFINCH,
    GOLDFISH,
    HAMMERHEAD,
    STINGRAY,
    TENCH,
    TOILET_TISSUE,
    WHITE_SHARK,
    draw,
    make_imagenet,
    make_imagenet_a,
    make_imagenet_r,
    make_imagenet_sketch,
    make_imagenet_v2,
)
from trainers.data.formats.imagenet import wordnet_ids
from trainers.data.formats.index import Finding
from trainers.data.storage import open_store

V2 = "imagenetv2-matched-frequency-format-val"


def test_wordnet_ids_are_those_of_timm_in_their_order():
    ids = list(wordnet_ids())
    assert ids == ImageNetInfo("imagenet-1k").label_names() == sorted(ids)
    assert [ids[i] for i in (0, 1, 988, 999)] == [TENCH, GOLDFISH, ACORN, TOILET_TISSUE]


@pytest.mark.parametrize(
    ("shift", "first"),
    [
        ("r", [1, 2, 4, 6, 8]),  # goldfish, great white shark, hammerhead, stingray, hen
        ("a", [6, 11, 13, 15, 17]),  # stingray, goldfinch, junco, American robin, jay
    ],
)
def test_masks_of_r_and_a_select_200_classes_in_order(shift, first):
    ids = wordnet_ids(f"imagenet_{shift}")
    text = files("timm.data").joinpath("_info", f"imagenet_{shift}_indices.txt").read_text()
    indices = [wordnet_ids().index(name) for name in ids]
    assert indices == [int(index) for index in text.split()]
    assert (len(set(ids)), indices[:5], indices[-1]) == (200, first, 988)


def test_imagenet_tests_on_the_official_validation_set(tmp_path):
    train, test = read("imagenet", make_imagenet(tmp_path))
    assert (train.domain, train.split) == ("imagenet", "train")
    assert (test.domain, test.split) == ("imagenet", "test")
    assert table(test) == [
        (f"val/{name}/ILSVRC2012_val_0000{number}_{name}.JPEG", label)
        for label, name in enumerate((TENCH, GOLDFISH, WHITE_SHARK, TOILET_TISSUE))
        for number in (1, 2)
    ]
    assert [e.label for e in train.examples] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert train.findings == test.findings == ()


def test_a_subset_has_the_classes_of_its_train_folder(tmp_path):
    make_imagenet(tmp_path)
    draw(tmp_path / "val" / STINGRAY / "other.JPEG")  # the validation set is whole
    for image in (tmp_path / "val" / WHITE_SHARK).iterdir():
        image.unlink()
    train, test = read("imagenet", tmp_path)
    assert train.class_names == test.class_names == (TENCH, GOLDFISH, WHITE_SHARK, TOILET_TISSUE)
    assert {e.label for e in test.examples} == {0, 1, 3}
    assert test.findings == (
        Finding(f"val/{WHITE_SHARK}", "missing class", "it has no image"),
        Finding(f"val/{STINGRAY}", "class not in train", "left out"),
    )


def test_the_validation_set_alone_is_enough(tmp_path):
    make_imagenet(tmp_path)
    (tmp_path / "train").rename(tmp_path / "unsorted")
    assert read_one("imagenet", tmp_path).split == "test"


def test_kaggles_archive_is_read_from_its_top(tmp_path):
    make_imagenet(tmp_path / "ILSVRC/Data/CLS-LOC")
    train, _ = read("imagenet", tmp_path)
    assert table(train)[0][0] == "train/n01440764/n01440764_10.JPEG"
    assert open_store(tmp_path).exists(train.examples[0].source.path)


@pytest.mark.parametrize("inside", [False, True])
def test_v2_is_labelled_by_the_number_of_the_folder(tmp_path, inside):
    root = make_imagenet_v2(tmp_path)
    index = read_one("imagenet-v2", root / V2 if inside else root)
    assert (index.domain, index.split) == ("imagenet-v2", "test")
    assert table(index) == [
        (f"{n}/{letter}{n}.jpeg", n) for n in (2, 10, 100, 999) for letter in "ab"
    ]
    assert [index.class_names[n] for n in (2, 10, 100)] == ["n01484850", "n01530575", "n01860187"]
    assert index.class_names == wordnet_ids()
    assert index.metadata == {"layout": "imagenet-v2", "variant": V2}
    assert [f.path for f in index.findings[:3]] == ["0", "1", "3"]
    assert len(index.findings) == 996


def test_v2_with_leading_zeros_is_the_same(tmp_path):
    (make_imagenet_v2(tmp_path) / V2 / "2").rename(tmp_path / V2 / "0002")
    index = read_one("imagenet-v2", tmp_path)
    assert table(index)[0] == ("0002/a2.jpeg", 2)
    assert len(index.findings) == 996


@pytest.mark.parametrize(
    ("layout", "make", "expected"),
    [
        (
            "imagenet-r",
            make_imagenet_r,
            [(GOLDFISH, 0), (WHITE_SHARK, 1), (HAMMERHEAD, 2), (STINGRAY, 3), (ACORN, 199)],
        ),
        ("imagenet-a", make_imagenet_a, [(STINGRAY, 0), (GOLDFINCH, 1), (ACORN, 199)]),
        (
            "imagenet-sketch",
            make_imagenet_sketch,
            [(TENCH, 0), (GOLDFISH, 1), (TOILET_TISSUE, 999)],
        ),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_shifts_are_labelled_in_the_order_of_wordnet_ids(tmp_path, layout, make, expected, wrapped):
    root = make(tmp_path)
    (archive,) = root.iterdir()
    index = read_one(layout, root if wrapped else archive)
    # Paths begin at the archive, so that both sources are carved alike.
    assert [(path.partition("/")[0], label) for path, label in table(index)[::2]] == expected
    assert [(index.class_names[label], label) for _, label in expected] == expected
    assert (index.domain, index.split, index.metadata) == (layout, "test", {"layout": layout})
    missing = len(index.class_names) - len(expected)
    assert [(kind, bad) for _, kind, bad in kinds(index)] == [("missing class", False)] * missing
    assert read_one(layout, root, domain="lines").domain == "lines"


def test_an_image_beside_the_class_folders_is_bad(tmp_path):
    draw(make_imagenet(tmp_path) / "val" / "ILSVRC2012_val_00000007.JPEG")
    _, test = read("imagenet", tmp_path)
    assert kinds(test) == [("val/ILSVRC2012_val_00000007.JPEG", "no class", True)]


def test_an_unsorted_validation_folder_is_refused(tmp_path):
    make_imagenet(tmp_path)
    (tmp_path / "val").rename(tmp_path / "sorted")
    for number in (1, 2, 3):
        draw(tmp_path / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    error = refusal("imagenet", tmp_path)
    assert (error.source, error.hint) == (f"{tmp_path}/val", "sort them by class")
    assert "3 beside them" in error.problem


@pytest.mark.parametrize(
    ("layout", "make", "folder", "name"),
    [
        ("imagenet", make_imagenet, "train", "n00000000"),
        ("imagenet", make_imagenet, "train", "goldfish"),
        *(
            ("imagenet-v2", make_imagenet_v2, V2, name)
            for name in ("1000", "-1", TENCH, "1_0", "²")
        ),
        ("imagenet-r", make_imagenet_r, "imagenet-r", TENCH),
        ("imagenet-a", make_imagenet_a, "imagenet-a", TENCH),
    ],
)
def test_a_folder_that_is_not_a_class_is_refused(tmp_path, layout, make, folder, name):
    draw(make(tmp_path) / folder / name / "a.jpeg")
    error = refusal(layout, tmp_path)
    assert error.source == f"{tmp_path}/{folder}"
    assert repr(name) in error.problem


def test_two_folders_of_one_number_are_refused(tmp_path):
    draw(make_imagenet_v2(tmp_path) / V2 / "002" / "a.jpeg")
    assert "two folders are the class 2" in refusal("imagenet-v2", tmp_path).problem


def test_one_variant_of_v2_has_to_be_chosen(tmp_path):
    draw(make_imagenet_v2(tmp_path) / "imagenetv2-top-images-format-val" / "0" / "a.jpeg")
    assert "several variants" in refusal("imagenet-v2", tmp_path).problem
