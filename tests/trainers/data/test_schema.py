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


IMAGE, LABEL = ("image", [{"bytes": b"x"}]), ("label", [0])
NAMES = {b"class_names": b'["cat"]'}


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ([IMAGE], NAMES),
        ([("photo", [{"bytes": b"x"}]), LABEL], NAMES),
        ([IMAGE, LABEL, LABEL], NAMES),
        ([("image", [b"x"]), LABEL], NAMES),
        ([("image", [{"bytes": "x"}]), LABEL], NAMES),
        ([IMAGE, ("label", ["cat"])], NAMES),
        ([IMAGE, LABEL], {}),
        ([IMAGE, LABEL], {b"class_names": b"{"}),
        ([IMAGE, LABEL], {b"huggingface": b'{"info": [1]}'}),
        ([IMAGE, LABEL], NAMES | {b"metadata": b"[1]"}),
    ],
)
def test_a_file_without_images_labels_or_class_names_is_refused(tmp_path, columns, metadata):
    names, values = zip(*columns, strict=True)
    table = pa.table(list(map(pa.array, values)), names).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "x.parquet")
    error = refusal(open_store(tmp_path))
    assert "are not an image" in error.problem
    assert "`lipsum-tune prepare parquet`" in str(error.hint)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" * 3, None])
def test_a_file_that_is_not_parquet_or_missing_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.parquet").write_bytes(content)
    assert "cannot be read" in refusal(open_store(tmp_path)).problem


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
    assert error.problem.startswith("labels 0 to 2")


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
