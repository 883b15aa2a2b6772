import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainers.data.schema import LabelledImage, check_labels, part_path, read_header, write_images
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError

IMAGES = [
    LabelledImage(b"first", "a.jpg", 1),
    LabelledImage(b"second", "b.jpg", 0),
]
CLASSES = ["cat", "dog"]
METADATA = {"license": "CC BY-SA 4.0", "attribution": "gezeichnet von Jörg"}


def refusal(store, read=read_header):
    """The error, of one line, with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        read(store, "x.parquet")
    assert caught.value.source == f"{store.url}/x.parquet"
    assert "\n" not in str(caught.value)
    return caught.value


def watched(root, on_read):
    """A store that passes everything that is read to a function, which may raise."""

    class Watched(Store):
        def open(self, path):
            source = super().open(path)

            class File:
                closed = False

                def read(self, size=None):
                    data = source.read(size)
                    on_read(data)
                    return data

                def __getattr__(self, name):
                    if name == "read_buffer":  # which Arrow would use instead
                        raise AttributeError(name)
                    return getattr(source, name)

            return pa.PythonFile(File(), mode="r")

    return Watched(**vars(open_store(root)))


def test_what_is_written_is_read_back(tmp_path):
    path = part_path(tmp_path, "real", "train")
    write_images(path, IMAGES, CLASSES, METADATA)
    header = read_header(open_store(tmp_path), "real/train/part-00000.parquet")
    assert header.class_names == ("cat", "dog")
    assert header.metadata == METADATA
    assert header.rows == 2
    assert pq.read_table(path).to_pylist() == [
        {"image": {"bytes": b"first", "path": "a.jpg"}, "label": 1},
        {"image": {"bytes": b"second", "path": "b.jpg"}, "label": 0},
    ]


IMAGE = [{"bytes": b"x"}]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ([("image", IMAGE), ("label", [0])], "no class names"),
        ([("image", IMAGE)], "expected columns 'image' and 'label', found image"),
        ([("photo", IMAGE), ("label", [0])], "expected columns"),
        ([("image", IMAGE), ("label", [0]), ("image", IMAGE)], "expected columns"),
        ([("image", IMAGE), ("label", [0]), ("label", [0])], "expected columns"),
        ([("image", [b"x"]), ("label", [0])], "'image' is binary, not a struct"),
        ([("image", IMAGE), ("label", ["cat"])], "'label' is string, not integers"),
        ([("image", [{"bytes": [1, 2]}]), ("label", [0])], "not a struct with binary bytes"),
        ([("image", [{"bytes": "x"}]), ("label", [0])], "not a struct with binary bytes"),
    ],
)
def test_a_file_without_class_names_or_columns_is_refused(tmp_path, columns, problem):
    names, values = zip(*columns, strict=True)
    pq.write_table(pa.table(list(map(pa.array, values)), names), tmp_path / "x.parquet")
    error = refusal(open_store(tmp_path))
    assert problem in error.problem
    assert "`lipsum-tune prepare parquet`" in str(error.hint)


@pytest.mark.parametrize("key", [b"class_names", b"metadata"])
def test_metadata_that_are_not_json_are_refused(tmp_path, key):
    write_images(tmp_path / "x.parquet", IMAGES, CLASSES, METADATA)
    table = pq.read_table(tmp_path / "x.parquet")
    for text in (b"{", b"[" * 100_000):
        entries = table.schema.metadata | {key: text}
        pq.write_table(table.replace_schema_metadata(entries), tmp_path / "x.parquet")
        assert f"{key.decode()!r} in its metadata" in refusal(open_store(tmp_path)).problem


@pytest.mark.parametrize("text", [b"[1]", b'{"info": [1]}', b'{"info": {"features": [1]}}'])
def test_features_of_another_form_name_no_classes(tmp_path, text):
    write_images(tmp_path / "x.parquet", IMAGES, CLASSES, METADATA)
    table = pq.read_table(tmp_path / "x.parquet").replace_schema_metadata({"huggingface": text})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "no class names" in refusal(open_store(tmp_path)).problem


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" * 3, None])
def test_a_file_that_is_not_parquet_or_missing_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.parquet").write_bytes(content)
    assert "cannot be read" in refusal(open_store(tmp_path)).problem


def test_a_damaged_page_of_labels_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    write_images(path, IMAGES, CLASSES, {})
    column = pq.read_metadata(path).row_group(0).column(2)
    assert column.path_in_schema == "label"
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert read_header(open_store(tmp_path), "x.parquet").rows == 2
    assert "cannot be read" in refusal(open_store(tmp_path), check_labels).problem


def test_a_connection_that_breaks_is_named(tmp_path):
    write_images(tmp_path / "x.parquet", IMAGES, CLASSES, {})

    def breaks(_):
        raise ConnectionResetError(104, "Connection reset by peer")

    assert "Connection reset by peer" in refusal(watched(tmp_path, breaks)).problem


def test_labels_are_checked_without_reading_an_image(tmp_path):
    path = tmp_path / "x.parquet"
    write_images(path, [LabelledImage(b"x" * 500_000, "a", 1)] * 2, CLASSES, {})
    sizes = []
    store = watched(tmp_path, lambda data: sizes.append(len(data)))
    assert check_labels(store, "x.parquet").rows == 2
    assert 0 < sum(sizes) < 100_000
    schema = pq.read_schema(path)
    pq.write_table(pq.read_table(path).set_column(1, schema.field(1), [[0, 2]]), path)
    error = refusal(open_store(tmp_path), check_labels)
    assert error.problem.startswith("label 2 of 2 classes")


def test_labels_without_a_class_and_repeated_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="label 1 of 1"):
        write_images(tmp_path / "x.parquet", IMAGES, ["cat"], {})
    with pytest.raises(ValueError, match="distinct"):
        write_images(tmp_path / "x.parquet", IMAGES, ["cat", "cat"], {})
    assert list(tmp_path.iterdir()) == []


def test_the_package_datasets_decodes_the_file(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "red.png")
    data = (tmp_path / "red.png").read_bytes()
    images = [LabelledImage(data, "red.png", 1)]
    write_images(tmp_path / "x.parquet", images, CLASSES, METADATA)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded[0]["image"].size == (8, 8)
    assert loaded.features["label"].int2str(loaded[0]["label"]) == "dog"
