from pathlib import Path

import pytest

from tests.trainers.data.formats.more_trees import make_domain_folders, make_folders
from tests.trainers.data.formats.trees import draw
from trainers.data.formats.folders import folders
from trainers.data.formats.index import Finding, LayoutOptions, SplitListing
from trainers.data.formats.readers import read_sources
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def listings(root: str | Path, **options: object) -> list[SplitListing]:
    return folders(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]


def table(listing: SplitListing) -> list[tuple[str, int]]:
    return [(example.path, example.label) for example in listing.examples]


def refused(root: Path, complaint: str, **options: object) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        listings(root, **options)
    assert "\n" not in str(raised.value)


def test_classes_are_sorted_as_image_folder_sorts_them_in_every_split(tmp_path: Path) -> None:
    found = listings(make_folders(tmp_path / "mine"))
    assert [(x.domain, x.split) for x in found] == [
        ("mine", "train"),
        ("mine", "val"),
        ("mine", "test"),
    ]
    assert {x.class_names for x in found} == {("Zebra", "cat", "t-shirt")}
    assert table(found[0]) == [
        ("train/Zebra/train_0.jpg", 0),
        ("train/Zebra/train_1.jpg", 0),
        ("train/cat/train_0.jpg", 1),
        ("train/cat/train_1.jpg", 1),
        ("train/t-shirt/train_0.jpg", 2),
        ("train/t-shirt/train_1.jpg", 2),
    ]
    assert table(found[1]) == [
        ("valid/Zebra/valid_0.jpg", 0),
        ("valid/cat/valid_0.jpg", 1),
        ("valid/t-shirt/valid_0.jpg", 2),
    ]
    assert not any(x.findings for x in found)
    assert found[0].metadata == {"layout": "folders"}


def test_images_are_the_files_listed_on_any_file_system(tmp_path: Path) -> None:
    root = make_folders(tmp_path)
    memory = open_store(f"memory://{tmp_path.name}")
    for file in root.rglob("*.jpg"):
        with memory.write(file.relative_to(root).as_posix()) as target:
            target.write(file.read_bytes())
    local = listings(root)
    assert folders(memory, LayoutOptions(domain=root.name)) == local
    examples = [example for listing in local for example in listing.examples]
    assert list(read_sources(memory, (e.source for e in examples))) == [
        (root / e.path).read_bytes() for e in examples
    ]


def test_without_split_folders_all_is_train_or_what_the_user_says(tmp_path: Path) -> None:
    root = make_folders(tmp_path) / "train"
    (listing,) = listings(root)
    assert (listing.domain, listing.split, len(listing.examples)) == ("train", "train", 6)
    (listing,) = listings(root, split="test", domain="photo")
    assert (listing.domain, listing.split) == ("photo", "test")


def test_folders_below_a_class_belong_to_it_and_other_files_do_not(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "more" / "a.png")
    draw(tmp_path / "cat" / "b.JPEG")
    draw(tmp_path / "dog" / "c.jpg")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "dog" / "empty.jpg").touch()  # found when it is read
    draw(tmp_path / "dog" / ".hidden.jpg")
    draw(tmp_path / ".cache" / "x.jpg")
    (listing,) = listings(tmp_path)
    assert table(listing) == [
        ("cat/b.JPEG", 0),
        ("cat/more/a.png", 0),
        ("dog/c.jpg", 1),
        ("dog/empty.jpg", 1),
    ]


def test_domains_share_one_order_of_classes_and_miss_some(tmp_path: Path) -> None:
    root = make_domain_folders(tmp_path)
    real, sketch = listings(root, domains=("all",))
    assert (real.domain, real.split, sketch.domain) == ("real", "train", "sketch")
    assert real.class_names == sketch.class_names == ("cat", "dog", "emu")
    assert [label for _, label in table(real)] == [0, 0, 0, 1, 1, 1]
    assert [label for _, label in table(sketch)] == [0, 0, 0, 2, 2, 2]
    assert real.findings == (Finding("real/emu", "missing class", "no images in real, train"),)
    assert sketch.findings == (
        Finding("sketch/dog", "missing class", "no images in sketch, train"),
    )


def test_domains_are_chosen_by_name_and_have_splits_of_their_own(tmp_path: Path) -> None:
    make_folders(tmp_path / "photo")
    make_domain_folders(tmp_path)
    found = listings(tmp_path, domains=("sketch", "photo"))
    assert [(x.domain, x.split, len(x.examples)) for x in found] == [
        ("photo", "train", 6),
        ("photo", "val", 3),
        ("photo", "test", 3),
        ("sketch", "train", 6),
    ]
    refused(tmp_path, r"--domains = 'skech'.*did you mean 'sketch'", domains=("skech",))
    refused(tmp_path, "give one of the two", domains=("all",), domain="x")


def test_class_names_of_the_user_s_give_the_order(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "mine")
    names = tmp_path / "names.txt"
    names.write_text("t-shirt\ncat\nbus\nZebra\n")
    train, *_ = listings(root, class_names=str(names))
    assert train.class_names == ("t-shirt", "cat", "bus", "Zebra")
    assert [label for _, label in table(train)] == [0, 0, 1, 1, 3, 3]
    assert [(f.path, f.kind) for f in train.findings] == [("train/bus", "missing class")]
    names.write_text("tshirt\ncat\nZebra\n")
    refused(
        root,
        r"the class folder 't-shirt' is not in --class-names .*did you mean 'tshirt'",
        class_names=str(names),
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "truck", "van"):
        draw(tmp_path / name / "a.jpg")
    (listing,) = listings(tmp_path)
    assert listing.class_names == ("train", "truck", "van")


def test_a_split_s_folder_beside_folders_of_images_is_refused(tmp_path: Path) -> None:
    root = make_folders(tmp_path)
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text("hello")
    assert [x.split for x in listings(root)] == ["train", "val", "test"]
    draw(root / "extra" / "a.jpg")
    refused(root, "'test' is the folder of a split .* beside it lie images in extra")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    root = make_folders(tmp_path)
    draw(root / "val" / "cat" / "a.jpg")
    refused(root, "val and valid are both the split 'val'|valid and val are both the split 'val'")


def test_domains_that_would_be_taken_for_classes_are_refused(tmp_path: Path) -> None:
    for domain in ("real", "sketch"):
        for name in ("cat", "dog"):
            draw(tmp_path / domain / name / "a.jpg")
    refused(tmp_path, "the folders real, sketch look like domains.* cat, dog; say --domains all")
    assert len(listings(tmp_path, domains=("all",))) == 2


def test_classes_that_keep_their_images_one_folder_down_are_classes(tmp_path: Path) -> None:
    for name in ("n01443537", "n01629819"):
        draw(tmp_path / "train" / name / "images" / f"{name}_0.JPEG")
    (listing,) = listings(tmp_path)
    assert listing.class_names == ("n01443537", "n01629819")


@pytest.mark.parametrize(
    ("one", "other"), [("Cat", "cat"), ("t-shirt", "t_shirt"), ("hot dog", "hot_dog")]
)
def test_classes_that_are_spoken_alike_are_refused(tmp_path: Path, one: str, other: str) -> None:
    draw(tmp_path / "real" / one / "a.jpg")
    draw(tmp_path / "sketch" / other / "a.jpg")
    refused(
        tmp_path, f"duplicate names: the classes '{one}' and '{other}'", domains=("real", "sketch")
    )


def test_images_outside_a_class_and_empty_folders_are_reported(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.jpg")
    draw(tmp_path / "overview.png")
    (tmp_path / "dog").mkdir()
    (listing,) = listings(tmp_path)
    assert listing.class_names == ("cat",)
    assert [(f.path, f.kind, f.bad) for f in listing.findings] == [
        ("overview.png", "no class", True),
        ("dog", "empty folder", False),
    ]


def test_unsorted_images_of_evaluation_do_not_become_a_class(tmp_path: Path) -> None:
    for name in ("n01443537", "n01629819"):
        draw(tmp_path / "train" / name / "images" / f"{name}_0.JPEG")
    draw(tmp_path / "val" / "images" / "val_0.JPEG")
    draw(tmp_path / "test" / "images" / "test_0.JPEG")
    refused(
        tmp_path,
        r"/val: the folders images are no classes of the split train \(n01443537, n01629819\); "
        "sort the images",
    )
    (listing,) = listings(tmp_path / "train")
    assert listing.class_names == ("n01443537", "n01629819")


def test_a_class_that_train_lacks_is_one_where_the_user_names_it(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "mine")
    draw(root / "test" / "bus" / "1.jpg")
    refused(root, r"/test: the folders bus are no classes of the split train")
    names = tmp_path / "names.txt"
    names.write_text("bus\ncat\nt-shirt\nZebra\n")
    *_, test = listings(root, class_names=str(names))
    assert ("test/bus/1.jpg", 0) in table(test)


def test_a_link_back_gives_no_class_the_images_of_another(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        draw(tmp_path / name / "1.jpg")
    (tmp_path / "cat" / "loop").symlink_to("..")
    (tmp_path / "dog" / "2.heic").write_bytes(b"an image from a telephone")
    (tmp_path / "dog" / "3.jpg").symlink_to("gone.jpg")
    (listing,) = listings(tmp_path)
    assert table(listing) == [("cat/1.jpg", 0), ("dog/1.jpg", 1)]
    assert [(f.path, f.kind, f.bad) for f in listing.findings] == [
        ("cat/loop", "looping link", False),
        ("dog/3.jpg", "missing file", True),
        (".", "other files", False),
    ]


def test_a_source_without_class_folders_is_refused_with_what_is_there(tmp_path: Path) -> None:
    refused(tmp_path, "no class folders with images; there is nothing")
    draw(tmp_path / "a.jpg")
    refused(tmp_path, "there is 1 images without a class folder")
    refused(tmp_path, "--label-column = 'x'", label_column="x")
