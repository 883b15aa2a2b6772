import io
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainers.data.formats.more_trees import encoded, pixels, write_parquet, write_tar
from tests.trainers.data.formats.troubled import troubled
from trainers.data.formats.readers import (
    ArraySource,
    FileSource,
    ParquetSource,
    RangeSource,
    TooLarge,
    read_sources,
)
from trainers.data.storage import open_store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    """The same folder on this machine's disk, and on a file system of fsspec's."""
    return open_store(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")


def put(store, path, data):
    with store.write(path) as file:
        file.write(data)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def parquet(images, row_group_size):
    file = io.BytesIO()
    pq.write_table(pa.table({"jpg": images}), file, row_group_size=row_group_size)
    return file.getvalue()


def test_files_tars_arrays_and_parquet_are_read_in_the_order_asked_for(store):
    array = pixels(5)
    put(store, "a/one.jpg", b"one")
    put(store, "x.tar", b"....two..three....")
    put(store, "y.npy", npy(array))
    put(store, "z.parquet", parquet([b"p0", b"p1", b"p2", b"p3"], 2))
    found = list(
        read_sources(
            store,
            [
                RangeSource("x.tar", 9, 5),
                RangeSource("x.tar", 4, 3),
                FileSource("a/one.jpg"),
                ArraySource("y.npy", 4),
                ArraySource("y.npy", 1),
                ParquetSource("z.parquet", 1, "jpg"),
                ParquetSource("z.parquet", 3, "jpg"),
                ParquetSource("z.parquet", 0, "jpg"),
            ],
        )
    )
    assert found[:3] == [b"three", b"two", b"one"]
    assert found[5:] == [b"p1", b"p3", b"p0"]
    for data, index in zip(found[3:5], (4, 1), strict=True):
        assert isinstance(data, bytes)
        image = Image.open(io.BytesIO(data))
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), array[index])


def test_what_cannot_be_read_is_an_error_among_its_neighbours(store):
    put(store, "good.jpg", b"good")
    put(store, "short.tar", b"12345")
    put(store, "short.npy", npy(pixels(3))[:-1])
    put(store, "flat.npy", npy(np.zeros((3, 4), np.uint8)))
    put(store, "no.npy", b"nothing of the kind")
    put(store, "no.parquet", b"nothing of the kind")
    put(store, "null.parquet", parquet([b"p0", None, b"p2"], 3))
    sources = [
        (FileSource("gone.jpg"), False),
        (FileSource("good.jpg"), True),
        (RangeSource("short.tar", 3, 4), False),
        (RangeSource("short.tar", 0, 4), True),
        (RangeSource("gone.tar", 0, 4), False),
        (RangeSource("gone.tar", 4, 4), False),
        (ArraySource("short.npy", 2), False),
        (ArraySource("short.npy", 1), True),
        (ArraySource("flat.npy", 1), False),
        (ArraySource("no.npy", 0), False),
        (ParquetSource("no.parquet", 0, "jpg"), False),
        (ParquetSource("null.parquet", 1, "jpg"), False),
        (ParquetSource("null.parquet", 2, "jpg"), True),
        (ParquetSource("null.parquet", 3, "jpg"), False),
        (ParquetSource("null.parquet", 2, "png"), False),
        (FileSource("good.jpg"), True),
    ]
    found = list(read_sources(store, [source for source, _ in sources]))
    assert [isinstance(data, bytes) for data in found] == [good for _, good in sources]
    assert all(isinstance(data, bytes | OSError) for data in found)


def test_many_files_keep_their_order_and_what_is_gone_its_place(store):
    for number in range(40):
        if number % 7 != 3:
            put(store, f"{number}.jpg", f"image {number}".encode())
    found = list(read_sources(store, (FileSource(f"{number}.jpg") for number in range(40))))
    assert [data if isinstance(data, bytes) else None for data in found] == [
        None if number % 7 == 3 else f"image {number}".encode() for number in range(40)
    ]
    assert {type(data) for data in found} == {bytes, FileNotFoundError}


def test_neighbours_in_one_file_share_one_opening_of_it(tmp_path):
    write_tar(tmp_path / "x.tar", {"a": b"a" * 700})
    np.save(tmp_path / "y.npy", pixels(4))
    write_parquet(tmp_path / "z.parquet", [encoded(n) for n in "abcd"], [0, 1, 0, 1])
    store = troubled(tmp_path)
    sources = [
        *(RangeSource("x.tar", 512 + i, 1) for i in range(5)),
        *(ArraySource("y.npy", i) for i in range(4)),
        *(ParquetSource("z.parquet", i, "image") for i in range(4)),
        ArraySource("y.npy", 0),
    ]
    assert all(isinstance(data, bytes) for data in read_sources(store, sources))
    assert store.asked == {"x.tar": 1, "y.npy": 2, "z.parquet": 1}


def test_rows_of_parquet_come_right_across_row_groups_and_batches(tmp_path):
    images = [encoded(str(row)) for row in range(300)]
    write_parquet(tmp_path / "z.parquet", images, [0] * 300, row_group_size=130)
    rows = [0, 63, 64, 129, 130, 131, 299, 5, 4, 259, 260, 128]
    sources = [ParquetSource("z.parquet", row, "image") for row in rows]
    assert list(read_sources(open_store(tmp_path), sources)) == [images[row] for row in rows]


def test_a_broken_page_of_parquet_costs_its_row_group_alone(tmp_path):
    noise = np.random.default_rng(0)
    images = [noise.bytes(2000) for _ in range(6)]
    file = tmp_path / "z.parquet"
    table = pa.table({"jpg": images})
    pq.write_table(table, file, row_group_size=2, use_dictionary=False, write_page_checksum=True)
    column = pq.read_metadata(file).row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = column.data_page_offset
    data[start : start + 20] = b"\xff" * 20
    file.write_bytes(data)
    sources = [ParquetSource("z.parquet", row, "jpg") for row in range(6)]
    found = list(read_sources(open_store(tmp_path), sources))
    assert [found[row] for row in (0, 1, 4, 5)] == [images[row] for row in (0, 1, 4, 5)]
    assert isinstance(found[2], OSError)
    assert isinstance(found[3], OSError)


def test_an_image_of_too_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(30_000_000_000)
    sources = [FileSource("sparse.jpg"), RangeSource("sparse.jpg", 512, 20_000_000_000)]
    tracemalloc.start()
    found = list(read_sources(open_store(tmp_path), sources))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert [type(error) for error in found] == [TooLarge, TooLarge]
