"""ObjectNet: which folders are kept, and the chain of files that gives them ImageNet's classes."""

import json
from pathlib import Path

import pytest

from tests.trainers.data.formats.trees import draw, make_objectnet
from trainers.data.formats.index import Finding, LayoutOptions, SplitListing
from trainers.data.formats.objectnet import objectnet
from trainers.data.formats.readers import FileSource
from trainers.data.storage import open_store
from trainers.errors import ConfigError

MAPPINGS = (
    "folder_to_objectnet_label.json",
    "imagenet_to_label_2012_v2",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_objectnet(tmp_path) / "objectnet-1.0"


def read(root: Path, **options: str) -> SplitListing:
    (listing,) = objectnet(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]
    return listing


def test_classes_that_imagenet_has_are_kept_sorted_by_folder(archive: Path) -> None:
    listing = read(archive)
    assert (listing.domain, listing.split) == ("objectnet", "test")
    assert [(e.path, e.label, listing.class_names[e.label]) for e in listing.examples] == [
        ("images/alarm_clock/alarm_clock1.png", 0, "alarm_clock"),
        ("images/alarm_clock/alarm_clock2.png", 0, "alarm_clock"),
        ("images/banana/banana1.png", 1, "banana"),
        ("images/banana/banana2.png", 1, "banana"),
        ("images/bicycle/bicycle1.png", 2, "bicycle"),
        ("images/bicycle/bicycle2.png", 2, "bicycle"),
        ("images/chair/chair1.png", 3, "chair"),
        ("images/chair/chair2.png", 3, "chair"),
    ]
    assert listing.findings == (Finding("images/air_freshener", "no ImageNet class", "left out"),)


def test_a_class_maps_to_all_of_its_imagenet_classes(archive: Path) -> None:
    assert json.loads(read(archive).metadata["class_map"]) == {
        "alarm_clock": ["n02708093", "n03196217"],  # analog and digital clock
        "banana": ["n07753592"],
        "bicycle": ["n03792782", "n02835271"],  # mountain bike, tandem
        "chair": ["n02791124", "n03376595", "n04099969"],  # barber, folding, rocking chair
    }


def test_the_frame_of_two_pixels_is_to_be_cut_off(archive: Path) -> None:
    assert read(archive).border == 2


def test_the_folder_that_holds_the_archive_may_be_given(archive: Path) -> None:
    listing = read(archive.parent, domain="things")
    assert listing.domain == "things"
    assert listing.examples[0].path == "images/alarm_clock/alarm_clock1.png"
    assert listing.examples[0].source == FileSource(
        "objectnet-1.0/images/alarm_clock/alarm_clock1.png"
    )


def test_a_mapped_class_without_a_folder_is_missing(archive: Path) -> None:
    (archive / "images/banana").rename(archive / "banana")
    listing = read(archive)
    assert listing.findings[0] == Finding("images/banana", "missing class", "it has no image")
    assert [e.label for e in listing.examples] == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("file", MAPPINGS)
def test_a_missing_mapping_says_where_it_comes_from(archive: Path, file: str) -> None:
    (archive / "mappings" / file).unlink()
    with pytest.raises(ConfigError, match=rf"{file} is missing: .*objectnet-1\.0\.zip"):
        read(archive)


@pytest.mark.parametrize("file", [file for file in MAPPINGS if file.endswith("json")])
@pytest.mark.parametrize("text", ["{", "[1]", '{"Chair": ["barber chair"]}'])
def test_a_mapping_of_another_form_is_refused(archive: Path, file: str, text: str) -> None:
    (archive / "mappings" / file).write_text(text)
    with pytest.raises(ConfigError, match=f"{file}: (not JSON|a JSON object)"):
        read(archive)


def test_a_mapping_of_nothing_is_refused(archive: Path) -> None:
    (archive / "mappings/objectnet_to_imagenet_1k.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"objectnet_to_imagenet_1k\.json: it maps no class"):
        read(archive)


def test_a_name_that_imagenet_does_not_have_is_refused(archive: Path) -> None:
    (archive / "mappings/objectnet_to_imagenet_1k.json").write_text('{"Chair": "sofa bed"}')
    with pytest.raises(ConfigError, match=r"'Chair': the name 'sofa bed' is not in imagenet_to"):
        read(archive)


def test_a_name_that_two_imagenet_classes_have_is_refused(archive: Path) -> None:
    file = archive / "mappings/imagenet_to_label_2012_v2"
    file.write_text(file.read_text().replace("class 0\n", "banana\n"))
    with pytest.raises(ConfigError, match="the name 'banana' is 2 times in"):
        read(archive)


def test_a_label_without_a_folder_is_refused(archive: Path) -> None:
    (archive / "mappings/objectnet_to_imagenet_1k.json").write_text('{"Sofa": "banana"}')
    with pytest.raises(ConfigError, match=r"'Sofa' is no label in folder_to_objectnet_label\.json"):
        read(archive)


def test_a_list_of_names_that_is_cut_off_is_refused(archive: Path) -> None:
    file = archive / "mappings/imagenet_to_label_2012_v2"
    file.write_text("\n".join(file.read_text().split("\n")[:900]))
    with pytest.raises(ConfigError, match=r"has 900 names .* ImageNet has 1000 classes"):
        read(archive)


def test_numbers_that_are_no_lines_of_the_list_are_refused(archive: Path) -> None:
    file = archive / "mappings/pytorch_to_imagenet_2012_id.json"
    numbers = {index: number + 1 for index, number in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(numbers))
    with pytest.raises(ConfigError, match=r"pytorch_to_imagenet_2012_id\.json: no number 0"):
        read(archive)


def test_a_source_without_images_says_what_is_there(tmp_path: Path) -> None:
    draw(tmp_path / "chair" / "a.png")
    with pytest.raises(ConfigError, match=r"folder images is looked for.*there is chair"):
        read(tmp_path)


def test_options_of_other_layouts_are_refused(archive: Path) -> None:
    with pytest.raises(ConfigError, match=r"objectnet: --class-names = 'names\.txt'"):
        read(archive, class_names="names.txt")
