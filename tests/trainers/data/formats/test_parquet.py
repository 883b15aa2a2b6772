import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainers.data.formats.more_trees import encoded, make_parquet, write_parquet
from tests.trainers.data.formats.reading import images, kinds, read, read_one, refusal, table
from trainers.data.formats.index import Finding
from trainers.data.schema import LabelledImage, part_path, write_images


def write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_splits_come_from_names_and_rows_keep_their_order(tmp_path):
    root = make_parquet(tmp_path / "pets")
    train, val = read("parquet", root)
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


def test_what_the_package_datasets_writes_is_read(tmp_path):
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
    index = read_one("parquet", tmp_path, domain="farm")
    assert (index.domain, index.split, index.class_names) == ("farm", "test", ("emu", "cow"))
    assert table(index) == [("test.parquet#0", 1), ("test.parquet#1", 0)]
    assert index.findings == (
        Finding("test.parquet#2", "no label", "", bad=True),
        Finding("test.parquet#3", "no image", "", bad=True),
    )
    stored = [
        row["bytes"] for row in pq.read_table(tmp_path / "test.parquet")["img"].to_pylist()[:2]
    ]
    assert images(tmp_path, index) == stored
    coarse = read_one("parquet", tmp_path, label_column="coarse_label")
    assert coarse.class_names == ("animal",)


def test_this_project_s_own_files_are_read_with_what_is_true_of_them(tmp_path):
    for split in ("train", "val"):
        write_images(
            part_path(tmp_path, "real", split),
            [LabelledImage(encoded(split), f"{split}.png", 1)],
            ["cat", "dog"],
            {"crop_pct": "1.0", "license": "MIT", "layout": "arrays", "val_seed": "0"},
        )
    train, val = read("parquet", tmp_path / "real")
    assert (train.domain, train.split, val.split) == ("real", "train", "val")
    assert [(e.path, e.label) for e in train.examples] == [("train.png", 1)]
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
def test_a_split_is_told_by_file_or_folder(tmp_path, name, split):
    write_parquet(tmp_path / name, [encoded("a")], [0])
    assert [x.split for x in read("parquet", tmp_path)] == [split]


def test_files_that_name_no_split_are_what_the_user_says(tmp_path):
    write_parquet(tmp_path / "0.parquet", [encoded("a")], [0])
    write_parquet(tmp_path / ".cache" / "train.parquet", [encoded("b")], [0])
    index = read_one("parquet", tmp_path, split="test")
    assert (index.split, len(index.examples)) == ("test", 1)


def test_plain_binary_columns_and_names_of_one_s_own_are_read(tmp_path):
    data = [encoded("a"), None, encoded("c")]
    write(tmp_path / "x.parquet", {"photo": data, "kind": pa.array([2, 0, 1], pa.int16())})
    names = tmp_path / "names.txt"
    names.write_text("x\ny\nz\n")
    index = read_one(
        "parquet", tmp_path, image_column="photo", label_column="kind", class_names=str(names)
    )
    assert index.class_names == ("x", "y", "z")
    assert table(index) == [("x.parquet#0", 2), ("x.parquet#2", 1)]
    assert index.findings == (Finding("x.parquet#1", "no image", "", bad=True),)
    assert images(tmp_path, index) == [data[0], data[2]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_labels_may_be_names(tmp_path, kind):
    image = [encoded("a")] * 3
    write(tmp_path / "train.parquet", {"jpg": image, "cls": pa.array(["emu", "cow", None], kind)})
    write(tmp_path / "test.parquet", {"jpg": image, "cls": pa.array(["ant", "cow", "emu"], kind)})
    train, test = read("parquet", tmp_path)
    assert train.class_names == test.class_names == ("ant", "cow", "emu")
    assert [label for _, label in table(train)] == [2, 1]
    assert [label for _, label in table(test)] == [0, 1, 2]
    names = tmp_path / "names.txt"
    names.write_text("emu\ncow\nant\n")
    train, test = read("parquet", tmp_path, class_names=str(names))
    assert [label for _, label in table(test)] == [2, 1, 0]
    names.write_text("emu\ncows\nant\n")
    error = refusal("parquet", tmp_path, class_names=str(names))
    assert str(error.source).endswith("train.parquet, row 1")
    assert "'cow' is not a class (did you mean 'cows'?)" in error.problem


def test_images_whose_names_repeat_go_by_file_and_row(tmp_path):
    image = [{"bytes": encoded(n), "path": "image.png"} for n in "abc"]
    write(tmp_path / "x.parquet", {"image": image, "label": ["a", "b", "a"]})
    index = read_one("parquet", tmp_path)
    assert table(index) == [("image.png", 0), ("x.parquet#1", 1), ("x.parquet#2", 0)]
    assert kinds(index) == [("x.parquet", "duplicate", False)]
    assert index.findings[0].detail.startswith("2 names")


def test_missing_images_are_found_without_statistics_too(tmp_path):
    rows = [encoded("a"), None, encoded("b"), None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(rows)], kind)
    data = pa.table({"image": image, "label": ["x"] * 4})
    pq.write_table(data, tmp_path / "x.parquet", write_statistics=False, row_group_size=3)
    index = read_one("parquet", tmp_path)
    assert table(index) == [("0.png", 0), ("2.png", 0)]
    assert [(f.path, f.bad) for f in index.findings] == [("1.png", True), ("3.png", True)]


def test_a_split_whose_labels_are_secret_is_left_out(tmp_path):
    root = make_parquet(tmp_path / "pets")
    for part, labels in enumerate(([-1, -1], [-1])):
        images = [encoded(str(label)) for label in labels]
        write_parquet(root / "data" / f"test-0000{part}-of-00002.parquet", images, labels)
    train, val = read("parquet", root)
    assert [(x.split, len(x.examples)) for x in (train, val)] == [("train", 5), ("val", 1)]
    assert kinds(train) == [("data/test-00000-of-00002.parquet", "unlabelled split", False)]
    assert "none of its 3 images has a label" in train.findings[0].detail
    assert not val.findings


def test_single_images_without_a_label_stay_in_the_index(tmp_path):
    write_parquet(tmp_path / "test-0.parquet", [encoded("a"), encoded("b")], [-1, 1])
    index = read_one("parquet", tmp_path)
    assert [label for _, label in table(index)] == [-1, 1]  # its reader finds it out of range


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"test-0": ([-1], ("cat",))}, "no image has a label"),
        ({"x": ([0], None)}, "x.parquet does not name the classes"),
        (
            {"train-0": ([0], ("cat", "dog")), "train-1": ([0], ("dog", "cat"))},
            "train-0.parquet and train-1.parquet have different class names",
        ),
        ({"x": ([0], ("crane", "x", "crane"))}, "the classes 0 and 2 (from 0) are both 'crane'"),
        ({"real/train/0": ([0], ("a",)), "sketch/train/0": ([0], ("a",))}, "several data sets"),
    ],
)
def test_files_that_do_not_make_one_data_set_are_refused(tmp_path, files, problem):
    for name, (labels, classes) in files.items():
        write_parquet(tmp_path / f"{name}.parquet", [encoded("a")], labels, class_names=classes)
    error = refusal("parquet", tmp_path)
    assert problem in error.problem
    assert error.key == ("--class-names" if "x" in files and files["x"][1] is None else None)


@pytest.mark.parametrize(
    ("chosen", "key"),
    [
        ({}, "--image-column"),
        ({"image_column": "foto"}, "--image-column"),
        ({"image_column": "size"}, "--image-column"),
        ({"image_column": "photo", "label_column": "size"}, "--label-column"),
    ],
)
def test_columns_that_are_missing_or_of_another_type_are_named(tmp_path, chosen, key):
    write(tmp_path / "x.parquet", {"photo": [b"x"], "label": ["a"], "size": [1.5]})
    assert refusal("parquet", tmp_path, **chosen).key == key


def test_one_of_several_label_columns_has_to_be_chosen(tmp_path):
    two = {name: {"_type": "ClassLabel", "names": ["a"]} for name in ("kind", "colour")}
    schema = pa.table({"image": [b"x"], "kind": [0], "colour": [0]})
    metadata = {"huggingface": json.dumps({"info": {"features": two}})}
    pq.write_table(schema.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    error = refusal("parquet", tmp_path)
    assert error.key == "--label-column"
    assert "kind, colour" in error.problem


def test_two_columns_of_one_name_are_refused(tmp_path):
    data = pa.Table.from_arrays(
        [pa.array([b"x"]), pa.array([0]), pa.array([1])], ["image", "a", "a"]
    )
    pq.write_table(data, tmp_path / "x.parquet")
    assert "several of its columns have one name" in refusal("parquet", tmp_path).problem


def test_files_that_are_not_parquet_are_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [encoded("a")], [0])
    whole = file.read_bytes()
    for data in (b"", b"nothing of the kind", whole[:-10]):
        file.write_bytes(data)
        assert refusal("parquet", tmp_path).problem.startswith("cannot be read")
    broken = pq.read_table(write_parquet(file, [encoded("a")], [0]))
    for text in ("{", "[" * 100_000):
        pq.write_table(broken.replace_schema_metadata({"huggingface": text}), file)
        assert "'huggingface' in its metadata" in refusal("parquet", tmp_path).problem
