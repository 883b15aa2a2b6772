"""ObjectNet: which folders are kept, and the chain of files that gives them ImageNet's classes."""

import json

import pytest

from tests.trainers.data.formats.reading import read_one, refusal, table
from tests.trainers.data.formats.trees import make_objectnet
from trainers.data.formats.index import Finding

MAPPINGS = (
    "folder_to_objectnet_label.json",
    "imagenet_to_label_2012_v2",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
)


@pytest.fixture
def archive(tmp_path):
    return make_objectnet(tmp_path) / "objectnet-1.0"


def test_classes_that_imagenet_has_are_kept_sorted_by_folder(archive):
    index = read_one("objectnet", archive)
    assert (index.domain, index.split, index.border) == ("objectnet", "test", 2)
    assert index.class_names == ("alarm_clock", "banana", "bicycle", "chair")
    assert table(index) == [
        (f"images/{name}/{name}{number}.png", label)
        for label, name in enumerate(index.class_names)
        for number in (1, 2)
    ]
    assert index.findings == (Finding("images/air_freshener", "no ImageNet class", "left out"),)


def test_a_class_maps_to_all_of_its_imagenet_classes(archive):
    assert json.loads(read_one("objectnet", archive).metadata["class_map"]) == {
        "alarm_clock": ["n02708093", "n03196217"],  # analog and digital clock
        "banana": ["n07753592"],
        "bicycle": ["n03792782", "n02835271"],  # mountain bike, tandem
        "chair": ["n02791124", "n03376595", "n04099969"],  # barber, folding, rocking chair
    }


def test_a_mapped_class_without_a_folder_is_missing(archive):
    (archive / "images/banana").rename(archive / "banana")
    index = read_one("objectnet", archive)
    assert index.findings[0] == Finding("images/banana", "missing class", "it has no image")
    assert [e.label for e in index.examples] == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("file", MAPPINGS)
def test_a_missing_mapping_is_named(archive, file):
    (archive / "mappings" / file).unlink()
    error = refusal("objectnet", archive)
    assert error.source == f"{archive}/mappings/{file}"
    assert "objectnet-1.0.zip" in str(error.hint)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *((f, t) for f in MAPPINGS if "json" in f for t in ("{", "[1]", '{"Chair": ["chair"]}')),
        ("objectnet_to_imagenet_1k.json", "{}"),
        ("objectnet_to_imagenet_1k.json", '{"Chair": "sofa bed"}'),  # no name of ImageNet
        ("objectnet_to_imagenet_1k.json", '{"Sofa": "banana"}'),  # no folder
        ("imagenet_to_label_2012_v2", "banana\n" * 900),
        ("imagenet_to_label_2012_v2", "banana\n" * 1000),  # a name of several classes
        ("pytorch_to_imagenet_2012_id.json", json.dumps({str(i): i + 1 for i in range(1000)})),
    ],
)
def test_mappings_that_do_not_fit_together_are_refused(archive, file, text):
    (archive / "mappings" / file).write_text(text)
    assert str(refusal("objectnet", archive).source).startswith(f"{archive}/mappings")
