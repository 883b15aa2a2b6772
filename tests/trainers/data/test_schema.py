"""What is written is read back, also by the package `datasets`; other files are refused."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.images import file_of
from trainers.data.schema import LabelledImage, part_path, read_header, write_images
from trainers.data.store import open_store
from trainers.errors import ConfigError

IMAGES = [LabelledImage(b"first", "a.jpg", 1), LabelledImage(b"second", "b.jpg", 0)]
CLASSES = ["cat", "Dögge"]


def test_what_is_written_is_read_back_also_by_datasets(tmp_path):
    images = [LabelledImage(file_of(Image.new("RGB", (8, 8))), "a.png", 1), *IMAGES]
    path = part_path(tmp_path, "real", "train")
    write_images(path, images, CLASSES)
    header = read_header(open_store(tmp_path), "real/train/part-00000.parquet")
    assert (header.class_names, header.rows) == (("cat", "Dögge"), 3)
    assert pq.read_table(path).to_pylist()[1:] == [
        {"image": {"bytes": b"first", "path": "a.jpg"}, "label": 1},
        {"image": {"bytes": b"second", "path": "b.jpg"}, "label": 0},
    ]
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=str(path), cache_dir=cache)["train"]
    assert loaded[0]["image"].size == (8, 8)
    assert loaded.features["label"].int2str(loaded[0]["label"]) == "Dögge"


def refused(root):
    with pytest.raises(ConfigError) as caught:
        read_header(open_store(root), "x.parquet")
    assert caught.value.source == f"{root}/x.parquet"
    assert "\n" not in str(caught.value)
    return str(caught.value)


IMAGE, LABEL = ("image", [{"bytes": b"x"}]), ("label", [0])
NAMES = {
    b"huggingface": b'{"info": {"features": {"label": {"names": ["cat"], "_type": "ClassLabel"}}}}'
}


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ([IMAGE], NAMES),
        ([("image", [b"x"]), LABEL], NAMES),
        ([IMAGE, ("label", ["cat"])], NAMES),
        ([IMAGE, LABEL], {b"huggingface": b"{"}),
        ([IMAGE, LABEL], {b"huggingface": b'{"info": [1]}'}),
    ],
)
def test_a_file_without_images_labels_or_class_names_is_refused(tmp_path, columns, metadata):
    names, values = zip(*columns, strict=True)
    table = pa.table(list(map(pa.array, values)), names).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "x.parquet")
    assert "are not an image" in refused(tmp_path)


@pytest.mark.parametrize("key", ["class_map", "crop_pct"])
def test_files_whose_metadata_changed_figures_are_refused(key, tmp_path):
    former = {b"metadata": json.dumps({"license": "CC0", key: "0.875"}).encode()}
    table = pa.table([pa.array(v) for _, v in (IMAGE, LABEL)], ["image", "label"])
    pq.write_table(table.replace_schema_metadata(NAMES | former), tmp_path / "x.parquet")
    assert f"the {key} of its metadata is not read any more (prepare" in refused(tmp_path)
    other = NAMES | {b"metadata": b'{"license": "CC0"}', b"class_names": b'["cat"]'}
    pq.write_table(table.replace_schema_metadata(other), tmp_path / "x.parquet")
    assert read_header(open_store(tmp_path), "x.parquet").class_names == ("cat",)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" * 3, None])
def test_a_file_that_is_not_parquet_or_missing_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.parquet").write_bytes(content)
    assert "cannot be read" in refused(tmp_path)
