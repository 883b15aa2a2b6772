"""ImageNet and its shifts: labels by WordNet id or by number, and folders that do not fit."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import fsspec
import pytest
from timm.data import ImageNetInfo

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
from trainers.data.formats.imagenet import (
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenet_v2,
    subset_ids,
    wordnet_ids,
)
from trainers.data.formats.index import Finding, LayoutOptions, SplitListing
from trainers.data.splits import carve_validation
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError

Layout = Callable[[Store, LayoutOptions], list[SplitListing]]


def read(layout: Layout, root: Path | str, **options: str) -> list[SplitListing]:
    return layout(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]


def the_only(listings: list[SplitListing]) -> SplitListing:
    (listing,) = listings
    return listing


def table(listing: SplitListing) -> list[tuple[str, int, str]]:
    return [(e.path, e.label, listing.class_names[e.label]) for e in listing.examples]


def test_wordnet_ids_are_those_of_timm_in_their_order() -> None:
    assert list(wordnet_ids()) == ImageNetInfo("imagenet-1k").label_names()
    assert len(wordnet_ids()) == 1000
    assert [wordnet_ids()[i] for i in (0, 1, 988, 999)] == [TENCH, GOLDFISH, ACORN, TOILET_TISSUE]


@pytest.mark.parametrize("shift", ["r", "a"])
def test_subsets_select_200_of_the_1000_classes_in_their_order(shift: str) -> None:
    text = files("timm.data").joinpath("_info", f"imagenet_{shift}_indices.txt").read_text()
    expected = [wordnet_ids()[int(index)] for index in text.split()]
    assert list(subset_ids(shift)) == expected  # type: ignore[arg-type]
    assert len(set(expected)) == 200


def test_masks_of_r_and_a_have_the_indices_known_for_them() -> None:
    index = {name: i for i, name in enumerate(wordnet_ids())}
    # goldfish, great white shark, hammerhead, stingray, hen; the last is acorn
    assert [index[name] for name in subset_ids("r")[:5]] == [1, 2, 4, 6, 8]
    assert index[subset_ids("r")[-1]] == 988
    # stingray, goldfinch, junco, American robin, jay
    assert [index[name] for name in subset_ids("a")[:5]] == [6, 11, 13, 15, 17]
    assert index[subset_ids("a")[-1]] == 988


def test_imagenet_trains_on_train_and_tests_on_the_official_validation_set(tmp_path: Path) -> None:
    train, test = read(imagenet, make_imagenet(tmp_path))
    assert (train.domain, train.split) == ("imagenet", "train")
    assert (test.domain, test.split) == ("imagenet", "test")
    assert table(test) == [
        ("val/n01440764/ILSVRC2012_val_00001_n01440764.JPEG", 0, "n01440764"),
        ("val/n01440764/ILSVRC2012_val_00002_n01440764.JPEG", 0, "n01440764"),
        ("val/n01443537/ILSVRC2012_val_00001_n01443537.JPEG", 1, "n01443537"),
        ("val/n01443537/ILSVRC2012_val_00002_n01443537.JPEG", 1, "n01443537"),
        ("val/n01484850/ILSVRC2012_val_00001_n01484850.JPEG", 2, "n01484850"),
        ("val/n01484850/ILSVRC2012_val_00002_n01484850.JPEG", 2, "n01484850"),
        ("val/n15075141/ILSVRC2012_val_00001_n15075141.JPEG", 3, "n15075141"),
        ("val/n15075141/ILSVRC2012_val_00002_n15075141.JPEG", 3, "n15075141"),
    ]
    assert [e.label for e in train.examples] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert train.findings == test.findings == ()


def test_a_subset_of_imagenet_has_the_classes_of_its_train_folder(tmp_path: Path) -> None:
    make_imagenet(tmp_path)
    for name in ("other.JPEG", "another.JPEG"):
        draw(tmp_path / "val" / STINGRAY / name)  # the validation set is whole
    for image in (tmp_path / "val" / WHITE_SHARK).iterdir():
        image.unlink()
    train, test = read(imagenet, tmp_path)
    assert train.class_names == test.class_names == (TENCH, GOLDFISH, WHITE_SHARK, TOILET_TISSUE)
    assert {e.label for e in test.examples} == {0, 1, 3}
    assert test.findings == (
        Finding(f"val/{WHITE_SHARK}", "missing class", "it has no image"),
        Finding("val", "images left out", "2 images of 1 classes that train lacks left out"),
        Finding(f"val/{STINGRAY}", "class not in train", "left out"),
    )


def test_all_class_folders_give_all_classes_in_their_order(tmp_path: Path) -> None:
    for name in wordnet_ids():
        (tmp_path / "train" / name).mkdir(parents=True)
    draw(tmp_path / "train" / TOILET_TISSUE / "roll.JPEG")
    train = the_only(read(imagenet, tmp_path))
    assert train.class_names == wordnet_ids()
    assert [e.label for e in train.examples] == [999]
    assert len(train.findings) == 999


def test_the_validation_set_alone_is_enough(tmp_path: Path) -> None:
    make_imagenet(tmp_path)
    (tmp_path / "train").rename(tmp_path / "unsorted")
    assert [listing.split for listing in read(imagenet, tmp_path)] == ["test"]


def test_kaggles_archive_is_read_from_its_top(tmp_path: Path) -> None:
    make_imagenet(tmp_path / "ILSVRC/Data/CLS-LOC")
    train, _ = read(imagenet, tmp_path)
    assert table(train)[0][0] == "train/n01440764/n01440764_10.JPEG"
    assert open_store(tmp_path).exists(train.examples[0].source.path)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layout", "make"), [(imagenet_v2, make_imagenet_v2), (imagenet_r, make_imagenet_r)]
)
def test_the_same_images_are_carved_from_an_archive_and_from_the_folder_around_it(
    tmp_path: Path, layout: Layout, make: Callable[[Path], Path]
) -> None:
    (archive,) = make(tmp_path).iterdir()
    carved = [
        [(x.split, table(x)) for x in carve_validation(read(layout, root), 0.5, seed=3)]
        for root in (tmp_path, archive)
    ]
    assert carved[0] == carved[1]


def test_v2_is_labelled_by_the_number_of_the_folder(tmp_path: Path) -> None:
    listing = the_only(read(imagenet_v2, make_imagenet_v2(tmp_path)))
    assert (listing.domain, listing.split) == ("imagenet-v2", "test")
    archive = "imagenetv2-matched-frequency-format-val"
    assert table(listing) == [
        ("2/a2.jpeg", 2, "n01484850"),
        ("2/b2.jpeg", 2, "n01484850"),
        ("10/a10.jpeg", 10, "n01530575"),
        ("10/b10.jpeg", 10, "n01530575"),
        ("100/a100.jpeg", 100, "n01860187"),
        ("100/b100.jpeg", 100, "n01860187"),
        ("999/a999.jpeg", 999, "n15075141"),
        ("999/b999.jpeg", 999, "n15075141"),
    ]
    assert listing.class_names == wordnet_ids()
    assert listing.metadata == {"layout": "imagenet-v2", "variant": archive}
    assert [f.path for f in listing.findings[:3]] == ["0", "1", "3"]
    assert len(listing.findings) == 996


def test_v2_may_be_given_as_the_folder_itself(tmp_path: Path) -> None:
    archive = make_imagenet_v2(tmp_path) / "imagenetv2-matched-frequency-format-val"
    listing = the_only(read(imagenet_v2, archive, domain="v2"))
    assert listing.domain == "v2"
    assert table(listing)[2] == ("10/a10.jpeg", 10, "n01530575")
    assert listing.metadata["variant"] == archive.name


def test_v2_with_zeros_in_front_is_the_same(tmp_path: Path) -> None:
    archive = make_imagenet_v2(tmp_path) / "imagenetv2-matched-frequency-format-val"
    (archive / "2").rename(archive / "0002")
    listing = the_only(read(imagenet_v2, archive))
    assert table(listing)[0] == ("0002/a2.jpeg", 2, "n01484850")
    assert len(listing.findings) == 996


@pytest.mark.parametrize(
    ("layout", "make", "expected"),
    [
        (
            imagenet_r,
            make_imagenet_r,
            [(GOLDFISH, 0), (WHITE_SHARK, 1), (HAMMERHEAD, 2), (STINGRAY, 3), (ACORN, 199)],
        ),
        (imagenet_a, make_imagenet_a, [(STINGRAY, 0), (GOLDFINCH, 1), (ACORN, 199)]),
        (imagenet_sketch, make_imagenet_sketch, [(TENCH, 0), (GOLDFISH, 1), (TOILET_TISSUE, 999)]),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_shifts_are_labelled_in_the_order_of_wordnet_ids(
    tmp_path: Path,
    layout: Layout,
    make: Callable[[Path], Path],
    expected: list[tuple[str, int]],
    wrapped: bool,
) -> None:
    root = make(tmp_path)
    (archive,) = root.iterdir()
    listing = the_only(read(layout, root if wrapped else archive))
    assert [(name, label) for _, label, name in table(listing)[::2]] == expected
    assert [Path(path).parent.name for path, _, _ in table(listing)[::2]] == [
        name for name, _ in expected
    ]
    assert listing.split == "test"
    assert listing.metadata == {"layout": listing.domain}
    missing = [f for f in listing.findings if f.kind == "missing class" and not f.bad]
    assert len(missing) == len(listing.findings) == len(listing.class_names) - len(expected)


def test_domains_of_shifts_are_named_after_them(tmp_path: Path) -> None:
    assert the_only(read(imagenet_r, make_imagenet_r(tmp_path / "r"))).domain == "imagenet-r"
    assert the_only(read(imagenet_a, make_imagenet_a(tmp_path / "a"))).domain == "imagenet-a"
    sketch = make_imagenet_sketch(tmp_path / "s")
    assert the_only(read(imagenet_sketch, sketch)).domain == "imagenet-sketch"
    assert the_only(read(imagenet_sketch, sketch, domain="lines")).domain == "lines"


def test_a_tree_in_a_bucket_reads_the_same(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{make_imagenet(tmp_path)}/", "/bucket/imagenet", recursive=True)
    try:
        there = read(imagenet, "memory://bucket/imagenet")
    finally:
        memory.rm("/bucket", recursive=True)
    assert there == read(imagenet, tmp_path)


def test_litter_of_computers_is_no_image(tmp_path: Path) -> None:
    archive = make_imagenet_r(tmp_path) / "imagenet-r"
    before = the_only(read(imagenet_r, tmp_path))
    jpeg = (archive / GOLDFISH / "art_1.jpg").read_bytes()
    for path in (
        f"{GOLDFISH}/._art_1.jpg",
        f"{GOLDFISH}/Thumbs.db",
        f"{GOLDFISH}/@eaDir/art_1.jpg/SYNOPHOTO_THUMB_XL.jpg",
        f"{GOLDFISH}/.ipynb_checkpoints/art_1.jpg",
        ".DS_Store",
        ".thumbnails/art.jpg",
        "__MACOSX/art.jpg",
    ):
        (archive / path).parent.mkdir(parents=True, exist_ok=True)
        (archive / path).write_bytes(jpeg)
    assert the_only(read(imagenet_r, tmp_path)) == before


def test_a_image_beside_the_class_folders_is_bad(tmp_path: Path) -> None:
    draw(make_imagenet(tmp_path) / "val" / "ILSVRC2012_val_00000007.JPEG")
    _, test = read(imagenet, tmp_path)
    assert [(f.path, f.kind, f.bad) for f in test.findings] == [
        ("val/ILSVRC2012_val_00000007.JPEG", "no class", True)
    ]


def test_an_unsorted_validation_folder_is_explained(tmp_path: Path) -> None:
    make_imagenet(tmp_path)
    (tmp_path / "val").rename(tmp_path / "sorted")
    for number in (1, 2, 3):
        draw(tmp_path / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    with pytest.raises(ConfigError, match=r"val: 3 images without class folders.*valprep\.sh"):
        read(imagenet, tmp_path)


def test_a_source_without_train_and_val_says_what_is_there(tmp_path: Path) -> None:
    make_imagenet(tmp_path)
    with pytest.raises(ConfigError, match=r"train and val are looked for.*there is n01440764"):
        read(imagenet, tmp_path / "train")


@pytest.mark.parametrize("name", ["n00000000", "goldfish"])
def test_an_unknown_class_folder_of_imagenet_is_refused(tmp_path: Path, name: str) -> None:
    draw(make_imagenet(tmp_path) / "train" / name / "a.JPEG")
    with pytest.raises(ConfigError, match=f"folder '{name}' is no WordNet id"):
        read(imagenet, tmp_path)


@pytest.mark.parametrize("name", ["1000", "-1", "n01440764", "1_0", "²"])
def test_a_folder_of_v2_that_is_no_class_index_is_refused(tmp_path: Path, name: str) -> None:
    draw(make_imagenet_v2(tmp_path) / "imagenetv2-matched-frequency-format-val" / name / "a.jpeg")
    with pytest.raises(ConfigError, match=f"folder '{name}' is no index"):
        read(imagenet_v2, tmp_path)


def test_two_folders_of_one_number_are_refused(tmp_path: Path) -> None:
    draw(make_imagenet_v2(tmp_path) / "imagenetv2-matched-frequency-format-val" / "002" / "a.jpeg")
    with pytest.raises(ConfigError, match="folders '002' and '2' are one class"):
        read(imagenet_v2, tmp_path)


def test_one_variant_of_v2_has_to_be_chosen(tmp_path: Path) -> None:
    draw(make_imagenet_v2(tmp_path) / "imagenetv2-top-images-format-val" / "0" / "a.jpeg")
    with pytest.raises(ConfigError, match="several variants of ImageNet-V2"):
        read(imagenet_v2, tmp_path)


def test_an_empty_source_of_v2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folders 0 to 999 are looked for"):
        read(imagenet_v2, tmp_path)


@pytest.mark.parametrize(
    ("layout", "archive"),
    [(imagenet_r, "imagenet-r"), (imagenet_a, "imagenet-a"), (imagenet_sketch, "sketch")],
)
def test_a_shift_without_class_folders_says_what_is_there(
    tmp_path: Path, layout: Layout, archive: str
) -> None:
    draw(tmp_path / "images" / "a.jpg")
    with pytest.raises(ConfigError, match=f"{archive}/; there is images"):
        read(layout, tmp_path)


@pytest.mark.parametrize(("layout", "shift"), [(imagenet_r, "r"), (imagenet_a, "a")])
def test_a_class_that_is_not_in_the_mask_is_refused(
    tmp_path: Path, layout: Layout, shift: str
) -> None:
    for name in (STINGRAY, TENCH):
        draw(tmp_path / name / "a.jpg")
    with pytest.raises(ConfigError, match=f"'{TENCH}' is not among the 200 .*imagenet-{shift}"):
        read(layout, tmp_path)


def test_class_folders_without_any_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / TENCH).mkdir(parents=True)
    with pytest.raises(ConfigError, match="train: no image in any of its class folders"):
        read(imagenet, tmp_path)


@pytest.mark.parametrize("layout", [imagenet, imagenet_v2, imagenet_r, imagenet_a, imagenet_sketch])
def test_options_of_other_layouts_are_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ConfigError, match=r"--split = 'val'.*it takes --domain\)"):
        read(layout, tmp_path, split="val")
