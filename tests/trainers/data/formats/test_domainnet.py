"""DomainNet's official lists: which images, which labels, and everything that can be wrong."""

import hashlib

import pytest

from tests.trainers.data.formats import reading
from tests.trainers.data.formats.reading import kinds, refusal, table
from tests.trainers.data.formats.trees import make_domainnet
from trainers.data.formats.domainnet import domainnet_classes
from trainers.data.formats.index import Finding

CLASSES = ("teddy-bear", "tent", "The_Eiffel_Tower", "tiger", "trumpet", "t-shirt", "umbrella")


@pytest.fixture
def tree(tmp_path):
    return make_domainnet(tmp_path / "DomainNet")


def read(root, **options):
    found = reading.read("domainnet", root, **options)
    return {(index.domain, index.split): index for index in found}


def append(file, *lines):
    file.write_text(file.read_text() + "".join(f"{line}\n" for line in lines))


def test_labels_and_class_order_are_those_of_the_lists(tree):
    found = read(tree)
    assert list(found) == [
        ("painting", "train"),
        ("painting", "test"),
        ("real", "train"),
        ("real", "test"),
    ]
    assert all(index.class_names == CLASSES for index in found.values())
    assert table(found["real", "test"]) == [
        (f"real/{name}/real_{label:03d}_000003.jpg", label) for label, name in enumerate(CLASSES)
    ]
    assert len(found["real", "train"].examples) == 14
    assert found["real", "train"].findings == ()


def test_the_345_classes_are_in_the_order_of_the_official_lists():
    names = domainnet_classes()
    assert len(set(names)) == 345
    by_label = {
        0: "aircraft_carrier",
        64: "cat",
        303: "teddy-bear",
        307: "tent",
        308: "The_Eiffel_Tower",
        311: "tiger",
        326: "trumpet",
        327: "t-shirt",
        328: "umbrella",
        344: "zigzag",
    }
    assert {label: names[label] for label in by_label} == by_label


def test_a_class_that_a_list_lacks_keeps_its_label_and_is_reported(tree):
    index = read(tree)["painting", "train"]
    assert list(index.findings) == [
        Finding("painting/t-shirt", "missing class", "painting_train.txt has no image of it")
    ]
    assert {label for _, label in table(index)} == {0, 1, 2, 3, 4, 6}


def test_class_names_do_not_depend_on_the_domains_asked_for(tree):
    test_list = tree / "painting_test.txt"  # without the last class, as painting may be
    test_list.write_text("".join(f"{line}\n" for line in test_list.read_text().split("\n")[:-2]))
    found = read(tree, domains=("painting",))
    assert {domain for domain, _ in found} == {"painting"}
    assert found["painting", "test"].class_names == CLASSES


def test_a_folder_spelled_in_another_case_goes_by_its_label(tree):
    (tree / "real/The_Eiffel_Tower").rename(tree / "real/the_eiffel_tower")
    for split in ("train", "test"):
        file = tree / f"real_{split}.txt"
        file.write_text(file.read_text().replace("The_Eiffel_Tower", "the_eiffel_tower"))
    index = read(tree)["real", "test"]
    assert index.class_names == CLASSES
    assert ("real/the_eiffel_tower/real_002_000003.jpg", 2) in table(index)
    assert index.findings == ()


def test_metadata_name_the_lists_that_were_read(tree):
    digests = [hashlib.sha256((tree / f"real_{s}.txt").read_bytes()) for s in ("train", "test")]
    assert read(tree)["real", "train"].metadata == {
        "layout": "domainnet",
        "lists_sha256": f"real_train.txt:{digests[0].hexdigest()} "
        f"real_test.txt:{digests[1].hexdigest()}",
        "deduplicated": "0",
    }


def test_lists_may_lie_in_a_folder_of_their_own(tree):
    expected = {split: table(index) for split, index in read(tree).items()}
    (tree / "splits").mkdir()
    for file in tree.glob("*.txt"):
        file.rename(tree / "splits" / file.name)
    assert {split: table(index) for split, index in read(tree).items()} == expected


def test_images_that_are_gone_or_listed_again_are_found(tree):
    gone, twice, both = (f"real/tiger/real_003_00000{number}.jpg" for number in (1, 2, 3))
    (tree / gone).unlink()
    append(tree / "real_train.txt", f"{twice} 3", f"{both} 3")
    found = read(tree)
    assert found["real", "train"].findings == (
        Finding(gone, "missing file", "real_train.txt lists it", bad=True),
        Finding(twice, "duplicate", "listed again in real_train.txt; taken once"),
        Finding(both, "in train and test", "left out of train"),
    )
    assert [path for path, label in table(found["real", "train"]) if label == 3] == [twice]
    assert (both, 3) in table(found["real", "test"])


def test_duplicates_of_the_users_list_are_left_out_and_counted(tree, tmp_path):
    duplicates = tmp_path / "duplicates.txt"
    left_out = ["real/tiger/real_003_000001.jpg", "real/tent/real_001_000003.jpg"]
    (tree / left_out[0]).unlink()  # as a user may have done with them already
    duplicates.write_text("\n".join([*left_out, "", "./clipart/tiger/clipart_003_000001.jpg"]))
    found = read(tree, deduplicate=str(duplicates))
    for split, path in (("train", left_out[0]), ("test", left_out[1])):
        index = found["real", split]
        assert path not in [p for p, _ in table(index)]
        assert [f for f in kinds(index) if f[0] == path] == [(path, "deduplicated", False)]
        assert index.metadata["deduplicated"] == "2"
        digest = hashlib.sha256(duplicates.read_bytes()).hexdigest()
        assert index.metadata["deduplicate_sha256"] == digest
    assert found["painting", "test"].metadata["deduplicated"] == "0"


def test_paths_of_the_users_list_that_no_list_has_are_counted(tree, tmp_path):
    duplicates = tmp_path / "duplicates.txt"
    known = "real/tiger/real_003_000001.jpg"
    duplicates.write_text(f"{known}\n{known} 3\nreal\\tiger\\real_003_000002.jpg\n")
    found = read(tree, domains=("real",), deduplicate=str(duplicates))
    assert found["real", "train"].findings == (
        Finding(
            "duplicates.txt",
            "unknown duplicates",
            f"no list has 2 of the 3 paths, e.g. {known} 3",
        ),
        Finding(known, "deduplicated", "left out as --deduplicate says"),
    )
    assert found["real", "test"].findings == ()


def test_a_domain_with_one_list_says_which_one_is_missing(tree):
    (tree / "real_train.txt").unlink()
    found = read(tree)
    assert ("real", "train") not in found
    assert found["real", "test"].findings == (
        Finding("real_train.txt", "missing list", "real has no train split"),
    )


@pytest.mark.parametrize(
    "line",
    [
        "real/tiger/real_003_000009.jpg",
        "real/tiger/real_003_000009.jpg three",
        "real/tiger/real_003_000009.jpg -1",
        "tiger/real_003_000009.jpg 3",
        "painting/tiger/painting_003_000009.jpg 3",
        "real/../real_003_000009.jpg 3",
    ],
)
def test_a_line_of_another_form_is_named(tree, line):
    append(tree / "real_train.txt", line)
    error = refusal("domainnet", tree)
    assert error.source == f"{tree}/real_train.txt"
    assert error.problem.startswith(f"line 15: {line!r}")


@pytest.mark.parametrize(
    "line",
    [
        "real/tiger/real_003_000009.jpg 4",  # the label of another folder
        "real/lion/real_003_000009.jpg 3",  # another folder for a label
        "real/Tiger/real_003_000009.jpg 7",  # a second label for a folder
    ],
)
def test_labels_that_do_not_match_their_folders_are_refused(tree, line):
    append(tree / "real_train.txt", line)
    error = refusal("domainnet", tree)
    assert str(error.source).endswith("real_train.txt")
    assert repr(line.split(" ")[0]) in error.problem


def test_a_label_without_an_image_has_no_name(tree):
    append(tree / "real_train.txt", "real/zebra/real_009_000001.jpg 9")
    assert "no list has an image of label 7" in refusal("domainnet", tree).problem


@pytest.mark.parametrize("data", [b"\n", b"\xff\xfe\x00real"])
def test_a_list_that_is_empty_or_not_text_is_refused(tree, data):
    (tree / "real_test.txt").write_bytes(data)
    assert refusal("domainnet", tree).source == f"{tree}/real_test.txt"


def test_a_domain_whose_folder_is_missing_is_refused(tree):
    (tree / "real").rename(tree / "real_old")
    assert "its folder real/ is missing or empty" in refusal("domainnet", tree).problem


@pytest.mark.parametrize("text", ["tiger/real_003_000001.jpg\n", None])
def test_duplicates_of_another_data_set_or_missing_are_refused(tree, tmp_path, text):
    duplicates = tmp_path / "duplicates.txt"
    if text is not None:
        duplicates.write_text(text)
    assert str(duplicates) in str(refusal("domainnet", tree, deduplicate=str(duplicates)))
