"""DomainNet's official lists: which images, which labels, and everything that can be wrong."""

import hashlib
from pathlib import Path

import fsspec
import pytest

from tests.trainers.data.formats.trees import make_domainnet
from trainers.data.formats.domainnet import domainnet
from trainers.data.formats.index import Finding, LayoutOptions, SplitListing
from trainers.data.storage import open_store
from trainers.errors import ConfigError

CLASSES = ("teddy-bear", "tent", "The_Eiffel_Tower", "tiger", "trumpet", "t-shirt", "umbrella")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_domainnet(tmp_path / "DomainNet")


def read(root: Path | str, **options: object) -> dict[tuple[str, str], SplitListing]:
    listings = domainnet(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]
    return {(listing.domain, listing.split): listing for listing in listings}


def table(listing: SplitListing) -> list[tuple[str, int]]:
    return [(example.path, example.label) for example in listing.examples]


def append(file: Path, *lines: str) -> None:
    file.write_text(file.read_text() + "".join(f"{line}\n" for line in lines))


def test_labels_and_class_order_are_those_of_the_lists(tree: Path) -> None:
    listings = read(tree)
    assert list(listings) == [
        ("painting", "train"),
        ("painting", "test"),
        ("real", "train"),
        ("real", "test"),
    ]
    assert all(listing.class_names == CLASSES for listing in listings.values())
    assert table(listings["real", "test"]) == [
        ("real/teddy-bear/real_000_000003.jpg", 0),
        ("real/tent/real_001_000003.jpg", 1),
        ("real/The_Eiffel_Tower/real_002_000003.jpg", 2),
        ("real/tiger/real_003_000003.jpg", 3),
        ("real/trumpet/real_004_000003.jpg", 4),
        ("real/t-shirt/real_005_000003.jpg", 5),
        ("real/umbrella/real_006_000003.jpg", 6),
    ]
    assert len(listings["real", "train"].examples) == 14
    assert listings["real", "train"].findings == ()


def test_the_source_of_an_example_is_its_file(tree: Path) -> None:
    store = open_store(tree)
    for listing in domainnet(store, LayoutOptions()):
        for example in listing.examples:
            assert example.source.path == example.path
            assert store.read_bytes(example.path)[:3] == b"\xff\xd8\xff"


def test_a_class_that_a_list_lacks_keeps_its_label_and_is_reported(tree: Path) -> None:
    listing = read(tree)["painting", "train"]
    assert list(listing.findings) == [
        Finding("painting/t-shirt", "missing class", "painting_train.txt has no image of it")
    ]
    assert {label for _, label in table(listing)} == {0, 1, 2, 3, 4, 6}


def test_class_names_do_not_depend_on_the_domains_asked_for(tree: Path) -> None:
    test_list = tree / "painting_test.txt"  # without the last class, as painting may be
    test_list.write_text("".join(f"{line}\n" for line in test_list.read_text().split("\n")[:-2]))
    listings = read(tree, domains=("painting",))
    assert {domain for domain, _ in listings} == {"painting"}
    assert listings["painting", "test"].class_names == CLASSES


def test_a_folder_spelled_in_another_case_goes_by_its_label(tree: Path) -> None:
    (tree / "real/The_Eiffel_Tower").rename(tree / "real/the_eiffel_tower")
    for split in ("train", "test"):
        file = tree / f"real_{split}.txt"
        file.write_text(file.read_text().replace("The_Eiffel_Tower", "the_eiffel_tower"))
    listing = read(tree)["real", "test"]
    assert listing.class_names == CLASSES
    assert ("real/the_eiffel_tower/real_002_000003.jpg", 2) in table(listing)
    assert listing.findings == ()


def test_metadata_tell_which_lists_were_read(tree: Path) -> None:
    digests = [hashlib.sha256((tree / f"real_{s}.txt").read_bytes()) for s in ("train", "test")]
    assert read(tree)["real", "train"].metadata == {
        "layout": "domainnet",
        "lists_sha256": f"real_train.txt:{digests[0].hexdigest()} "
        f"real_test.txt:{digests[1].hexdigest()}",
        "deduplicated": "0",
    }


def test_lists_may_lie_in_a_folder_of_their_own(tree: Path) -> None:
    expected = {split: table(listing) for split, listing in read(tree).items()}
    (tree / "splits").mkdir()
    for file in tree.glob("*.txt"):
        file.rename(tree / "splits" / file.name)
    assert {split: table(listing) for split, listing in read(tree).items()} == expected


def test_a_tree_in_a_bucket_reads_the_same(tree: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{tree}/", "/bucket/domainnet", recursive=True)
    try:
        assert read("memory://bucket/domainnet") == read(tree)
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_listed_file_that_is_not_there_is_bad(tree: Path) -> None:
    gone = "real/tiger/real_003_000001.jpg"
    (tree / gone).unlink()
    listing = read(tree)["real", "train"]
    assert listing.findings == (Finding(gone, "missing file", "real_train.txt lists it", bad=True),)
    assert len(listing.examples) == 13


def test_a_image_listed_twice_is_taken_once(tree: Path) -> None:
    twice = "real/tiger/real_003_000001.jpg"
    append(tree / "real_train.txt", f"{twice} 3")
    listing = read(tree)["real", "train"]
    assert [(f.path, f.kind, f.bad) for f in listing.findings] == [(twice, "duplicate", False)]
    assert [path for path, _ in table(listing)].count(twice) == 1


def test_a_image_in_both_lists_stays_in_test_alone(tree: Path) -> None:
    both = "real/tiger/real_003_000003.jpg"
    append(tree / "real_train.txt", f"{both} 3")
    listings = read(tree)
    assert (both, 3) in table(listings["real", "test"])
    assert (both, 3) not in table(listings["real", "train"])
    found = listings["real", "train"].findings
    assert [(f.path, f.kind, f.bad) for f in found] == [(both, "in train and test", False)]


def test_duplicates_of_the_users_list_are_left_out_and_counted(tree: Path, tmp_path: Path) -> None:
    duplicates = tmp_path / "duplicates.txt"
    left_out = ["real/tiger/real_003_000001.jpg", "real/tent/real_001_000003.jpg"]
    (tree / left_out[0]).unlink()  # as a user may have done with them already
    duplicates.write_text("\n".join([*left_out, "", "./clipart/tiger/clipart_003_000001.jpg"]))
    listings = read(tree, deduplicate=str(duplicates))
    for split, path in (("train", left_out[0]), ("test", left_out[1])):
        listing = listings["real", split]
        assert path not in [p for p, _ in table(listing)]
        found = [(f.path, f.kind, f.bad) for f in listing.findings if f.kind == "deduplicated"]
        assert found == [(path, "deduplicated", False)]
        assert listing.metadata["deduplicated"] == "2"
        digest = hashlib.sha256(duplicates.read_bytes()).hexdigest()
        assert listing.metadata["deduplicate_sha256"] == digest
    assert listings["painting", "test"].metadata["deduplicated"] == "0"


def test_paths_of_the_users_list_that_no_list_has_are_counted(tree: Path, tmp_path: Path) -> None:
    duplicates = tmp_path / "duplicates.txt"
    known = "real/tiger/real_003_000001.jpg"
    duplicates.write_text(f"{known}\n{known} 3\nreal\\tiger\\real_003_000002.jpg\n")
    listings = read(tree, domains=("real",), deduplicate=str(duplicates))
    assert listings["real", "train"].findings == (
        Finding(
            "duplicates.txt",
            "unknown duplicates",
            f"no list has 2 of the 3 paths, e.g. {known} 3",
        ),
        Finding(known, "deduplicated", "left out as --deduplicate says"),
    )
    assert listings["real", "test"].findings == ()


def test_a_domain_with_one_list_says_which_one_is_missing(tree: Path) -> None:
    (tree / "real_train.txt").unlink()
    listings = read(tree)
    assert ("real", "train") not in listings
    assert listings["real", "test"].findings == (
        Finding("real_train.txt", "missing list", "real has no train split"),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("real/tiger/real_003_000009.jpg", "line 15: 'real/tiger/real_003_000009.jpg' is not"),
        ("real/tiger/real_003_000009.jpg three", "line 15"),
        ("real/tiger/real_003_000009.jpg -1", "line 15"),
        ("tiger/real_003_000009.jpg 3", "line 15"),
        ("painting/tiger/painting_003_000009.jpg 3", "line 15"),
        ("real/../real_003_000009.jpg 3", "line 15"),
        (
            "real/tiger/real_003_000009.jpg 4",
            "line 15: label 4 with folder 'tiger', but in the lines and lists before, folder "
            "'tiger' has label 3",
        ),
        (
            "real/lion/real_003_000009.jpg 3",
            "line 15: label 3 with folder 'lion', but in the lines and lists before, label 3 is "
            "folder 'tiger'",
        ),
        ("real/Tiger/real_003_000009.jpg 7", "folder 'Tiger' has label 3"),
    ],
)
def test_a_wrong_line_is_named(tree: Path, line: str, message: str) -> None:
    append(tree / "real_train.txt", line)
    with pytest.raises(ConfigError) as error:
        read(tree)
    assert "real_train.txt, line 15" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_without_a_image_anywhere_has_no_name(tree: Path) -> None:
    append(tree / "real_train.txt", "real/zebra/real_009_000001.jpg 9")
    with pytest.raises(ConfigError, match=r"no list has an image of label 7, .* go up to 9"):
        read(tree)


def test_an_empty_list_is_refused(tree: Path) -> None:
    (tree / "real_test.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"real_test\.txt: the list is empty"):
        read(tree)


def test_a_list_that_is_no_text_is_refused(tree: Path) -> None:
    (tree / "real_test.txt").write_bytes(b"\xff\xfe\x00real")
    with pytest.raises(ConfigError, match=r"real_test\.txt: not a text in UTF-8"):
        read(tree)


def test_a_source_without_lists_says_what_is_there(tree: Path) -> None:
    for file in tree.glob("*.txt"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"real_train\.txt.*there is painting, real$"):
        read(tree)


def test_a_domain_whose_folder_is_missing_is_refused(tree: Path) -> None:
    (tree / "real").rename(tree / "real_old")
    with pytest.raises(ConfigError, match="its folder real/ is not there or empty"):
        read(tree)


def test_an_unknown_domain_is_refused_with_a_suggestion(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"--domains = 'rael'.*did you mean 'real'"):
        read(tree, domains=("rael",))


def test_duplicates_of_another_data_set_are_refused(tree: Path, tmp_path: Path) -> None:
    duplicates = tmp_path / "duplicates.txt"
    duplicates.write_text("tiger/real_003_000001.jpg\n")
    with pytest.raises(ConfigError, match=r"no list has any of its 1 paths \(tiger/real_003"):
        read(tree, deduplicate=str(duplicates))


def test_a_missing_file_of_duplicates_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt: cannot be read"):
        read(tree, deduplicate=str(tmp_path / "nowhere.txt"))


def test_options_of_other_layouts_are_refused(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"domainnet: --image-column = 'img'.*no use for it"):
        read(tree, image_column="img")
