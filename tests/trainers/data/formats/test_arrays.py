"""NumPy arrays: the official release by its folder names, arrays of one's own, and broken files."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.trainers.data.formats.more_trees import ARRAY_LABELS, make_arrays, pixels
from tests.trainers.data.formats.reading import images, read, read_one, refusal, table


def save(folder, images, labels, split="test"):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{split}_images.npy", images)
    np.save(folder / f"{split}_labels.npy", labels)
    return folder


def test_the_official_folders_are_known_by_name(tmp_path):
    found = read("arrays", make_arrays(tmp_path))
    named = {x.domain: [x.class_names[e.label] for e in x.examples] for x in found}
    assert named == {
        "real": ["aircraft_carrier", "zebra", "zigzag", "aircraft_carrier"],
        "sketch": ["zigzag", "airplane"],
        # Of ImageNet-R's 200 in their order: goldfish (1 of 1000), acorn (988), stingray (6).
        "imagenet-r": ["n01443537", "n12267677", "n01498041"],
        "imagenet": ["n15075141", "n01440764"],
    }
    assert {x.split for x in found} == {"test"}
    sizes = {"real": 345, "sketch": 345, "imagenet-r": 200, "imagenet": 1000}
    assert {x.domain: len(x.class_names) for x in found} == sizes
    assert all(x.metadata == {"layout": "arrays", "crop_pct": "1.0"} for x in found)


def test_images_come_back_as_they_are_in_the_array(tmp_path):
    folder = make_arrays(tmp_path) / "DomainNetReal_x224"
    index = read_one("arrays", folder)
    labels = ARRAY_LABELS["DomainNetReal_x224"]
    assert table(index) == [(f"test_images.npy#{i}", label) for i, label in enumerate(labels)]
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for data in images(folder, index)]
    assert np.array_equal(np.stack(decoded), np.load(folder / "test_images.npy"))


def test_domains_are_restricted_and_named(tmp_path):
    root = make_arrays(tmp_path)
    found = read("arrays", root, domains=("sketch", "imagenet"))
    assert {x.domain for x in found} == {"sketch", "imagenet"}
    folder = root / "DomainNetReal_x224"
    assert read_one("arrays", folder, domain="photo").domain == "photo"
    assert refusal("arrays", root, domains=("sketches",)).key == "--domains"
    assert refusal("arrays", folder, domains=("sketch",)).key == "--domains"
    assert refusal("arrays", root, domain="photo").key == "--domain"
    save(root / "DomainNetReal_x336", pixels(1), np.array([0]))
    assert "two folders are the domain 'real'" in refusal("arrays", root).problem


def test_arrays_of_ones_own_have_splits_and_need_class_names(tmp_path):
    folder = save(tmp_path / "mine", pixels(2), np.array([1, 0], np.uint8), "train")
    save(folder, pixels(1), np.array([7], np.int16), "val")
    assert refusal("arrays", folder).key == "--class-names"
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    found = read("arrays", folder, class_names=str(names))
    assert [(x.domain, x.split, [e.label for e in x.examples]) for x in found] == [
        ("mine", "train", [1, 0]),
        ("mine", "val", [7]),  # its range is checked when the image is read
    ]
    assert found[0].class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((2, 0, 4, 3), np.uint8),
        np.zeros((2, 48), np.uint8),
        np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)),
        np.array([{}, {}], dtype=object),
    ],
    ids=["float", "channels first", "no pixels", "flat", "Fortran", "objects"],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array):
    folder = save(tmp_path / "ImageNetA_x224", array, np.array([0, 1]))
    assert refusal("arrays", folder).source == f"{folder}/test_images.npy"


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((2, 10), np.int64),
        np.zeros(2),
        np.array(["cat", 1], dtype=object),
        np.array([0, 1, 2]),
        None,
    ],
    ids=["scores", "float", "objects", "too many", "missing"],
)
def test_labels_of_another_kind_are_refused(tmp_path, labels):
    folder = save(tmp_path / "ImageNetA_x224", pixels(2), np.zeros(0) if labels is None else labels)
    if labels is None:
        (folder / "test_labels.npy").unlink()
    assert refusal("arrays", folder).source == f"{folder}/test_labels.npy"


@pytest.mark.parametrize("name", ["test_images.npy", "test_labels.npy"])
def test_files_cut_off_or_of_another_kind_are_refused(tmp_path, name):
    file = save(tmp_path / "ImageNetA_x224", pixels(2), np.array([0, 1])) / name
    whole = file.read_bytes()
    headers = (b"", b"PK\x03\x04 and no NumPy at all", whole[:40], whole[:-1], whole + b"\0")
    unparsable = whole[:20] + b"\xff(((" + whole[24:]
    for data in (*headers, unparsable, whole[:6] + b"\x09" + whole[7:]):
        file.write_bytes(data)
        assert refusal("arrays", file.parent).source == str(file)
