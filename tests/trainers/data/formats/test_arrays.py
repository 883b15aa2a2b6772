import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainers.data.formats.more_trees import ARRAY_LABELS, make_arrays, pixels
from trainers.data.formats.arrays import arrays
from trainers.data.formats.index import LayoutOptions, SplitListing
from trainers.data.formats.readers import read_sources
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def listings(root: str | Path, **options: object) -> list[SplitListing]:
    return arrays(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]


def save(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "test") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{split}_images.npy", images)
    np.save(folder / f"{split}_labels.npy", labels)
    return folder


def refused(root: Path, complaint: str, **options: object) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        listings(root, **options)
    assert "\n" not in str(raised.value)


def test_the_official_folders_are_known_by_name(tmp_path: Path) -> None:
    found = listings(make_arrays(tmp_path))
    named = {
        listing.domain: [listing.class_names[e.label] for e in listing.examples]
        for listing in found
    }
    assert named == {
        "real": ["aircraft_carrier", "zebra", "zigzag", "aircraft_carrier"],
        "sketch": ["zigzag", "airplane"],
        # Of ImageNet-R's 200 in their order: goldfish (1 of 1000), acorn (988), stingray (6).
        "imagenet-r": ["n01443537", "n12267677", "n01498041"],
        "imagenet": ["n15075141", "n01440764"],
    }
    assert {listing.split for listing in found} == {"test"}
    assert {listing.domain: len(listing.class_names) for listing in found} == {
        "real": 345,
        "sketch": 345,
        "imagenet-r": 200,
        "imagenet": 1000,
    }
    assert all(x.metadata == {"layout": "arrays", "crop_pct": "1.0"} for x in found)


def test_domainnet_s_classes_stand_in_the_order_of_the_official_lists(tmp_path: Path) -> None:
    (listing,) = listings(make_arrays(tmp_path) / "DomainNetReal_x224")
    names = listing.class_names
    assert len(set(names)) == 345
    by_label = {
        0: "aircraft_carrier",
        64: "cat",
        301: "table",
        303: "teddy-bear",
        304: "telephone",
        307: "tent",
        308: "The_Eiffel_Tower",
        309: "The_Great_Wall_of_China",
        310: "The_Mona_Lisa",
        311: "tiger",
        326: "trumpet",
        327: "t-shirt",
        328: "umbrella",
        344: "zigzag",
    }
    assert {label: names[label] for label in by_label} == by_label


def test_images_come_back_as_they_are_in_the_array(tmp_path: Path) -> None:
    folder = make_arrays(tmp_path) / "DomainNetReal_x224"
    (listing,) = listings(folder)
    assert [e.label for e in listing.examples] == ARRAY_LABELS["DomainNetReal_x224"]
    assert [e.path for e in listing.examples] == [f"test_images.npy#{i}" for i in range(4)]
    encoded = read_sources(open_store(folder), (e.source for e in listing.examples))
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])  # type: ignore[arg-type]
    assert np.array_equal(decoded, np.load(folder / "test_images.npy"))


def test_the_same_arrays_are_read_from_another_file_system(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    make_arrays(tmp_path)
    for file in tmp_path.rglob("*.npy"):
        with store.write(file.relative_to(tmp_path).as_posix()) as target:
            target.write(file.read_bytes())
    local = listings(tmp_path)
    assert arrays(store, LayoutOptions()) == local
    sources = [example.source for listing in local for example in listing.examples]
    assert list(read_sources(store, sources)) == list(read_sources(open_store(tmp_path), sources))


def test_domains_are_restricted_and_named(tmp_path: Path) -> None:
    root = make_arrays(tmp_path)
    assert [x.domain for x in listings(root, domains=("sketch", "imagenet"))] == [
        "sketch",
        "imagenet",
    ]
    folder = root / "DomainNetReal_x224"
    assert [x.domain for x in listings(folder, domain="photo")] == ["photo"]
    refused(root, r"--domains = 'sketches'.*did you mean 'sketch'", domains=("sketches",))
    refused(root, "--domain = 'photo' names one domain", domain="photo")
    refused(folder, "--domains = 'sketch' is not there", domains=("sketch",))
    save(root / "DomainNetReal_x336", pixels(1), np.array([0]))
    refused(root, "DomainNetReal_x224 and DomainNetReal_x336 are both the domain 'real'")


def test_arrays_of_one_s_own_have_splits_and_need_class_names(tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", pixels(2), np.array([1, 0], np.uint8), "train")
    save(folder, pixels(1), np.array([7], np.int16), "val")
    refused(folder, "--class-names is missing: 'mine'")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    found = listings(folder, class_names=str(names))
    assert [(x.domain, x.split, [e.label for e in x.examples]) for x in found] == [
        ("mine", "train", [1, 0]),
        ("mine", "val", [7]),  # whoever reads it checks the range
    ]
    assert found[0].class_names == ("cat", "dog")


def test_as_many_labels_as_images_are_needed(tmp_path: Path) -> None:
    folder = save(tmp_path / "ImageNetA_x224", pixels(3), np.array([0, 1]))
    refused(folder, r"test_images.npy holds 3 images and test_labels.npy 2 labels")
    (folder / "test_labels.npy").unlink()
    refused(folder, r"test_images.npy is there, but test_labels.npy is missing")


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"shape \(2, 4, 4, 3\), float32 is not the expected"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"shape \(2, 3, 4, 4\), uint8 is not the expected"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"shape \(2, 0, 4, 3\), uint8 is not the expected"),
        (np.zeros((2, 48), np.uint8), r"shape \(2, 48\), uint8 is not the expected"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "Fortran's order"),
        (np.array([{}, {}], dtype=object), "Python objects"),
    ],
)
def test_arrays_of_another_kind_are_refused(
    tmp_path: Path, images: np.ndarray, complaint: str
) -> None:
    folder = save(tmp_path / "ImageNetA_x224", images, np.array([0, 1]))
    refused(folder, f"test_images.npy: .*{complaint}")


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.zeros((2, 10), np.int64), r"shape \(2, 10\), int64 is not the expected"),
        (np.zeros(2), r"shape \(2,\), float64 is not the expected"),
        (np.array(["cat", 1], dtype=object), "Python objects"),
    ],
)
def test_labels_of_another_kind_are_refused(
    tmp_path: Path, labels: np.ndarray, complaint: str
) -> None:
    folder = save(tmp_path / "ImageNetA_x224", pixels(2), labels)
    refused(folder, f"test_labels.npy: .*{complaint}")


@pytest.mark.parametrize("name", ["test_images.npy", "test_labels.npy"])
def test_files_cut_off_or_of_another_kind_are_refused(tmp_path: Path, name: str) -> None:
    file = save(tmp_path / "ImageNetA_x224", pixels(2), np.array([0, 1])) / name
    whole = file.read_bytes()
    headers = (b"", b"PK\x03\x04 and no NumPy at all", whole[:40], whole[:-1], whole + b"\0")
    unparsable = whole[:20] + b"\xff(((" + whole[24:]
    for data in (*headers, unparsable, whole[:6] + b"\x09" + whole[7:]):
        file.write_bytes(data)
        refused(file.parent, name)


def test_a_folder_without_arrays_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    refused(tmp_path, r"neither test_images.npy.*there is images")
    refused(tmp_path, "--deduplicate = 'x'", deduplicate="x")
