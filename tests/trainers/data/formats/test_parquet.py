import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainers.data.formats.more_trees import encoded, make_parquet, write_parquet
from trainers.data.formats.index import Finding, LayoutOptions, SplitListing
from trainers.data.formats.parquet import parquet
from trainers.data.formats.readers import read_sources
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def listings(root: str | Path, **options: object) -> list[SplitListing]:
    return parquet(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]


def table(listing: SplitListing) -> list[tuple[str, int]]:
    return [(example.path, example.label) for example in listing.examples]


def images(root: Path, listing: SplitListing) -> list[bytes | OSError]:
    return list(read_sources(open_store(root), (e.source for e in listing.examples)))


def refused(root: Path, complaint: str, **options: object) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        listings(root, **options)
    assert "\n" not in str(raised.value)


def write(path: Path, columns: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_splits_come_from_names_and_rows_keep_their_order(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "pets")
    train, val = listings(root)
    assert (train.domain, train.split, val.split) == ("pets", "train", "val")
    assert train.class_names == val.class_names == ("cat", "dog")
    assert table(train) == [
        ("train-00000-of-00002_0.png", 0),
        ("train-00000-of-00002_1.png", 1),
        ("train-00000-of-00002_2.png", 1),
        ("train-00001-of-00002_0.png", 1),
        ("train-00001-of-00002_1.png", 0),
    ]
    assert table(val) == [("validation-00000-of-00001_0.png", 0)]
    assert images(root, train) == [encoded(name) for name in "abcde"]
    assert train.metadata == {"layout": "parquet"}
    assert not train.findings


def test_what_the_package_datasets_writes_is_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "coarse_label": datasets.ClassLabel(names=["animal"]),
            "fine_label": datasets.ClassLabel(names=["emu", "cow"]),
        }
    )
    drawn = [Image.new("RGB", (5, 4), (200, 10 * i, 0)) for i in range(3)]
    data = datasets.Dataset.from_dict(
        {"img": [*drawn, None], "coarse_label": [0] * 4, "fine_label": [1, 0, None, 1]},
        features=features,
    )
    data.to_parquet(tmp_path / "test.parquet")
    (listing,) = listings(tmp_path, domain="farm")
    assert (listing.domain, listing.split, listing.class_names) == ("farm", "test", ("emu", "cow"))
    assert table(listing) == [("test.parquet#0", 1), ("test.parquet#1", 0)]
    assert listing.findings == (
        Finding("test.parquet#2", "no label", "", bad=True),
        Finding("test.parquet#3", "no image", "", bad=True),
    )
    stored = [
        row["bytes"] for row in pq.read_table(tmp_path / "test.parquet")["img"].to_pylist()[:2]
    ]
    assert images(tmp_path, listing) == stored
    (coarse,) = listings(tmp_path, label_column="coarse_label")
    assert coarse.class_names == ("animal",)


def test_this_project_s_own_files_are_read_with_captions_and_what_is_true_of_them(
    tmp_path: Path,
) -> None:
    for split in ("train", "val"):
        write_images(
            part_path(tmp_path, "real", split),
            [LabelledImage(encoded(split), f"{split}.png", 1, "a dog.")],
            ["cat", "dog"],
            {"crop_pct": "1.0", "license": "MIT", "layout": "arrays", "val_seed": "0"},
        )
    train, val = listings(tmp_path / "real")
    assert (train.domain, train.split, val.split) == ("real", "train", "val")
    assert [(e.path, e.label, e.caption) for e in train.examples] == [("train.png", 1, "a dog.")]
    assert train.metadata == {"layout": "parquet", "crop_pct": "1.0", "license": "MIT"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00005.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("plain_text/dev/0000.parquet", "val"),
        ("valid/more/part-0.parquet", "val"),
        ("imagenet_test_3.PARQUET", "test"),
        ("Test/0.parquet", "test"),
        ("latest/trainer.parquet", "train"),  # no word of it is a split's: --split, or train
    ],
)
def test_a_split_is_told_by_file_or_folder(tmp_path: Path, name: str, split: str) -> None:
    write_parquet(tmp_path / name, [encoded("a")], [0])
    assert [x.split for x in listings(tmp_path)] == [split]


def test_files_that_name_no_split_are_what_the_user_says(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [encoded("a")], [0])
    write_parquet(tmp_path / ".cache" / "train.parquet", [encoded("b")], [0])
    assert [(x.split, len(x.examples)) for x in listings(tmp_path, split="test")] == [("test", 1)]


def test_plain_binary_columns_and_names_of_one_s_own_are_read(tmp_path: Path) -> None:
    data = [encoded("a"), None, encoded("c")]
    write(tmp_path / "x.parquet", {"photo": data, "kind": pa.array([2, 0, 1], pa.int16())})
    names = tmp_path / "names.txt"
    names.write_text("x\ny\nz\n")
    (listing,) = listings(
        tmp_path, image_column="photo", label_column="kind", class_names=str(names)
    )
    assert listing.class_names == ("x", "y", "z")
    assert table(listing) == [("x.parquet#0", 2), ("x.parquet#2", 1)]
    assert listing.findings == (Finding("x.parquet#1", "no image", "", bad=True),)
    assert images(tmp_path, listing) == [data[0], data[2]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_labels_may_be_names(tmp_path: Path, kind: pa.DataType) -> None:
    image = [encoded("a")] * 3
    write(tmp_path / "train.parquet", {"jpg": image, "cls": pa.array(["emu", "cow", None], kind)})
    write(tmp_path / "test.parquet", {"jpg": image, "cls": pa.array(["ant", "cow", "emu"], kind)})
    train, test = listings(tmp_path)
    assert train.class_names == test.class_names == ("ant", "cow", "emu")
    assert [label for _, label in table(train)] == [2, 1]
    assert [label for _, label in table(test)] == [0, 1, 2]
    names = tmp_path / "names.txt"
    names.write_text("emu\ncow\nant\n")
    train, test = listings(tmp_path, class_names=str(names))
    assert [label for _, label in table(test)] == [2, 1, 0]
    names.write_text("emu\ncows\nant\n")
    refused(
        tmp_path,
        "train.parquet, row 1: the label 'cow' is no name of a class .did you mean 'cows'",
        class_names=str(names),
    )


def test_images_whose_names_repeat_go_by_file_and_row(tmp_path: Path) -> None:
    image = [{"bytes": encoded(n), "path": "image.png"} for n in "abc"]
    write(tmp_path / "x.parquet", {"image": image, "label": ["a", "b", "a"]})
    (listing,) = listings(tmp_path)
    assert table(listing) == [("image.png", 0), ("x.parquet#1", 1), ("x.parquet#2", 0)]
    (finding,) = listing.findings
    assert (finding.path, finding.kind, finding.bad) == ("x.parquet", "duplicate", False)
    assert finding.detail.startswith("2 names")


def test_missing_images_are_found_without_statistics_too(tmp_path: Path) -> None:
    rows = [encoded("a"), None, encoded("b"), None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(rows)], kind)
    data = pa.table({"image": image, "label": ["x"] * 4})
    pq.write_table(data, tmp_path / "x.parquet", write_statistics=False, row_group_size=3)
    (listing,) = listings(tmp_path)
    assert table(listing) == [("0.png", 0), ("2.png", 0)]
    assert [(f.path, f.bad) for f in listing.findings] == [("1.png", True), ("3.png", True)]


def test_a_split_whose_labels_are_secret_is_left_out(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "pets")
    for part, labels in enumerate(([-1, -1], [-1])):
        images = [encoded(str(label)) for label in labels]
        write_parquet(root / "data" / f"test-0000{part}-of-00002.parquet", images, labels)
    train, val = listings(root)
    assert (train.split, len(train.examples), val.split, len(val.examples)) == (
        "train",
        5,
        "val",
        1,
    )
    assert [(f.path, f.kind, f.bad) for f in train.findings] == [
        ("data/test-00000-of-00002.parquet", "unlabelled split", False)
    ]
    assert "none of its 3 images has a label" in train.findings[0].detail
    assert not val.findings


def test_single_images_without_a_label_stay_in_the_listing(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-0.parquet", [encoded("a"), encoded("b")], [-1, 1])
    (listing,) = listings(tmp_path)
    assert [label for _, label in table(listing)] == [-1, 1]  # its reader finds it out of range


def test_a_source_without_any_label_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-0.parquet", [encoded("a")], [-1])
    refused(tmp_path, "no image has a label")


def test_integers_without_names_of_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded("a")], [0], class_names=None)
    refused(tmp_path, "--class-names is missing: x.parquet does not say .* column 'label' mean")


def test_files_of_different_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [encoded("a")], [0])
    write_parquet(tmp_path / "train-1.parquet", [encoded("a")], [0], class_names=("dog", "cat"))
    refused(tmp_path, "train-0.parquet and train-1.parquet name different classes")


def test_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded("a")], [0], class_names=("crane", "x", "crane"))
    refused(tmp_path, "x.parquet: duplicate names: the classes 0 and 2 are both 'crane'")


def test_several_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "real" / "train" / "part-0.parquet", [encoded("a")], [0])
    write_parquet(tmp_path / "sketch" / "train" / "part-0.parquet", [encoded("a")], [0])
    refused(tmp_path, "real/train/part-0.parquet, sketch/train/part-0.parquet are of several")


def test_columns_that_nobody_can_tell_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", {"photo": [b"x"], "label": ["a"], "size": [1.5]})
    refused(tmp_path, "--image-column is missing: no column image/.* are photo, label, size")
    refused(tmp_path, "--image-column = 'foto' .*did you mean 'photo'", image_column="foto")
    refused(tmp_path, "--image-column = 'size' holds double", image_column="size")
    refused(
        tmp_path,
        "--label-column = 'size' holds double, neither",
        image_column="photo",
        label_column="size",
    )
    two = {name: {"_type": "ClassLabel", "names": ["a"]} for name in ("kind", "colour")}
    schema = pa.table({"image": [b"x"], "kind": [0], "colour": [0]})
    metadata = {"huggingface": json.dumps({"info": {"features": two}})}
    pq.write_table(schema.replace_schema_metadata(metadata), file)
    refused(tmp_path, "--label-column is missing: several columns .* are kind, colour")


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [encoded("a")], [0])
    whole = file.read_bytes()
    for data in (b"", b"nothing of the kind", whole[:-10]):
        file.write_bytes(data)
        refused(tmp_path, "x.parquet cannot be read as Parquet")
    broken = pq.read_table(write_parquet(file, [encoded("a")], [0]))
    pq.write_table(broken.replace_schema_metadata({"huggingface": "{"}), file)
    refused(tmp_path, "x.parquet: 'huggingface' in its metadata")


def test_a_folder_without_parquet_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("x")
    refused(tmp_path, r"no \*.parquet; there is data.csv")
    refused(tmp_path, "--domains = 'x'", domains=("x",))
