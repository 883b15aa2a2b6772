import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainers.data.schema import (
    LabelledImage,
    check_labels,
    part_path,
    part_paths,
    read_header,
    write_images,
)
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError

IMAGES = [
    LabelledImage(b"first", "a.jpg", 1, "a dog."),
    LabelledImage(b"second", "b.jpg", 0, None),
]
CLASSES = ["cat", "dog"]
METADATA = {"license": "CC BY-SA 4.0", "attribution": "gezeichnet von Jörg"}


class Recording(Store):
    """A store that knows how many bytes were read from it."""

    read = 0

    def open(self, path: str) -> pa.NativeFile:
        source, recording = super().open(path), self

        class File:
            closed = False

            def read(self, size: int | None = None) -> bytes:
                data: bytes = source.read(size)
                object.__setattr__(recording, "read", recording.read + len(data))
                return data

            def __getattr__(self, name: str) -> object:
                if name == "read_buffer":  # which Arrow would use instead
                    raise AttributeError(name)
                return getattr(source, name)

        return pa.PythonFile(File(), mode="r")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = part_path(tmp_path, "real", "train")
    write_images(path, IMAGES, CLASSES, METADATA)
    header = read_header(open_store(tmp_path), "real/train/part-00000.parquet")
    assert header.class_names == ("cat", "dog")
    assert header.metadata == METADATA
    assert header.rows == 2
    assert pq.read_table(path).to_pylist() == [
        {"image": {"bytes": b"first", "path": "a.jpg"}, "label": 1, "caption": "a dog."},
        {"image": {"bytes": b"second", "path": "b.jpg"}, "label": 0, "caption": None},
    ]


def test_the_header_says_how_large_images_are_uncompressed_and_nothing_else(
    tmp_path: Path,
) -> None:
    images = [{"bytes": bytes([n]) * 100_000, "path": f"{n}.bmp"} for n in range(4)]
    columns = {"image": images, "label": [0] * 4, "depth": [bytes(50_000)] * 4}
    table = pa.table(columns).replace_schema_metadata({"class_names": '["cat"]'})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", row_group_size=2)
    assert (tmp_path / "x.parquet").stat().st_size < 10_000
    header = read_header(open_store(tmp_path), "x.parquet")
    assert 400_000 < header.image_bytes < 401_000


def test_files_lie_in_a_folder_per_domain_and_split(tmp_path: Path) -> None:
    for part in (1, 0):
        write_images(part_path(tmp_path, "sketch", "val", part), IMAGES, CLASSES, {})
    names = [
        path.relative_to(tmp_path).as_posix() for path in part_paths(tmp_path, "sketch", "val")
    ]
    assert names == ["sketch/val/part-00000.parquet", "sketch/val/part-00001.parquet"]
    with pytest.raises(FileNotFoundError, match="test"):
        part_paths(tmp_path, "sketch", "test")


def test_the_column_of_captions_is_left_out_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    write_images(path, [LabelledImage(b"x", "x.jpg", 0)], CLASSES, {})
    schema = pq.read_schema(path)
    assert schema.names == ["image", "label"]
    assert schema.field("label").type == pa.int64()


def test_the_schema_names_the_features_as_hugging_face_does(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_images(path, IMAGES, CLASSES, METADATA)
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": CLASSES, "_type": "ClassLabel"},
        "caption": {"dtype": "string", "_type": "Value"},
    }


def test_class_names_of_a_file_from_hugging_face_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_images(path, IMAGES, CLASSES, METADATA)
    table = pq.read_table(path)
    only = {b"huggingface": table.schema.metadata[b"huggingface"]}
    pq.write_table(table.replace_schema_metadata(only), path)
    header = read_header(open_store(tmp_path), "x.parquet")
    assert (header.class_names, header.metadata) == (("cat", "dog"), {})


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"image": [{"bytes": b"x"}], "label": [0]}, "no class names"),
        ({"image": [{"bytes": b"x"}]}, "no column 'label'"),
        ({"photo": [{"bytes": b"x"}], "label": [0]}, "no column 'image'"),
        ({"image": [b"x"], "label": [0]}, "'image' is binary, not a struct with bytes"),
        ({"image": [{"bytes": b"x"}], "label": ["cat"]}, "'label' is string, not integers"),
        ({"image": [{"bytes": [1, 2]}], "label": [0]}, "'image.bytes' is list<.*>, not binary"),
        ({"image": [{"bytes": "x"}], "label": [0]}, "'image.bytes' is string, not binary"),
    ],
)
def test_a_file_without_class_names_or_columns_is_refused_with_advice(
    tmp_path: Path, columns: dict[str, list[object]], problem: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    message = f"^{tmp_path}/x.parquet: .*{problem}.*`lipsum-tune prepare parquet`"
    with pytest.raises(ConfigError, match=message):
        read_header(open_store(tmp_path), "x.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" * 3])
def test_what_is_no_parquet_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x.parquet: not a whole Parquet file") as caught:
        read_header(open_store(tmp_path), "x.parquet")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/x.parquet: cannot be opened"):
        read_header(open_store(tmp_path), "x.parquet")


def test_a_page_of_labels_that_is_damaged_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_images(path, IMAGES, CLASSES, {})
    column = pq.read_metadata(path).row_group(0).column(2)
    assert column.path_in_schema == "label"
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert read_header(open_store(tmp_path), "x.parquet").rows == 2
    with pytest.raises(ConfigError, match=f"^{path}: cannot be read: .*thrift") as caught:
        check_labels(open_store(tmp_path), "x.parquet")
    assert "\n" not in str(caught.value)


class Cut(Store):
    """A store whose connections break once a file is open."""

    def open(self, path: str) -> pa.NativeFile:
        source = super().open(path)

        class File:
            closed = False

            def read(self, size: int | None = None) -> bytes:
                raise ConnectionResetError(104, "Connection reset by peer")

            def __getattr__(self, name: str) -> object:
                if name == "read_buffer":  # which Arrow would use instead
                    raise AttributeError(name)
                return getattr(source, name)

        return pa.PythonFile(File(), mode="r")


def test_a_connection_that_breaks_is_told_in_one_line(tmp_path: Path) -> None:
    write_images(tmp_path / "x.parquet", IMAGES, CLASSES, {})
    message = f"^{tmp_path}/x.parquet: cannot be read: .*Connection reset by peer"
    with pytest.raises(ConfigError, match=message):
        read_header(Cut(**vars(open_store(tmp_path))), "x.parquet")


def test_labels_are_checked_without_reading_a_image(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_images(path, [LabelledImage(b"x" * 500_000, "a", 1)] * 2, CLASSES, {})
    store = Recording(**vars(open_store(tmp_path)))
    assert check_labels(store, "x.parquet").rows == 2
    assert 0 < store.read < 100_000
    schema = pq.read_schema(path)
    pq.write_table(pq.read_table(path).set_column(1, schema.field(1), [[0, 2]]), path)
    with pytest.raises(ConfigError, match=f"^{path}: label 2 of 2 classes"):
        check_labels(open_store(tmp_path), "x.parquet")


def test_labels_without_a_class_and_repeated_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 1 of 1"):
        write_images(tmp_path / "x.parquet", IMAGES, ["cat"], {})
    with pytest.raises(ValueError, match="distinct"):
        write_images(tmp_path / "x.parquet", IMAGES, ["cat", "cat"], {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    write_images(path, IMAGES, CLASSES, METADATA)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("trainers.data.schema.pq.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_images(path, IMAGES[:1], CLASSES, METADATA)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.parquet"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("captions", [True, False])
def test_the_package_datasets_decodes_the_file(tmp_path: Path, captions: bool) -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "red.png")
    data = (tmp_path / "red.png").read_bytes()
    row = LabelledImage(data, "red.png", 1, "a red dog." if captions else None)
    write_images(tmp_path / "x.parquet", [row], CLASSES, METADATA)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded[0]["image"].size == (8, 8)
    assert loaded.features["label"].int2str(loaded[0]["label"]) == "dog"
