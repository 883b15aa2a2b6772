import logging
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.data.record_file import RecordFile, RecordFolder, _warn

ROWS, WIDTH, RECORDS = 4, 8, 6
RECORD_BYTES = ROWS * WIDTH * 2 + 4
LIMIT = 3 * RECORDS * RECORD_BYTES


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _warn.cache_clear()
    return tmp_path / "vectors"


def opened(*identity, records=RECORDS, limit_bytes=LIMIT, dtype=torch.float16):
    folder = RecordFolder(Path("vectors").absolute(), limit_bytes, "vectors")
    size = {"records": records, "rows": ROWS, "width": WIDTH, "dtype": dtype}
    return RecordFile(folder, identity or ("one",), **size)


def features(seed, rows=ROWS):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_a_record_is_what_was_written_rounded_once():
    written = opened().write(2, features(0))
    np.testing.assert_array_equal(written.numpy(), features(0).numpy().astype(np.float16))
    again = opened()
    assert torch.equal(again.read(2, ROWS), written)
    assert [again.read(n, ROWS) is None for n in range(RECORDS)] == [n != 2 for n in range(RECORDS)]
    assert opened("another").read(2, ROWS) is None
    exact = opened(dtype=torch.float32, limit_bytes=10 * LIMIT).write(2, features(0))
    assert torch.equal(exact, features(0))


def test_the_last_record_of_a_step_may_be_shorter():
    file = opened()
    file.write(5, features(1, rows=3))
    assert torch.equal(file.read(5, 3), features(1, rows=3).half())
    assert file.read(5, ROWS) is None
    assert file.write(0, features(1, rows=0)).shape == (0, WIDTH)
    assert file.read(0, 0).shape == (0, WIDTH)


@pytest.mark.parametrize("kept", [0, 1, RECORD_BYTES // 2, RECORD_BYTES - 4, RECORD_BYTES - 1])
def test_part_of_a_record_is_not_read(kept, folder):
    """What a kill or a crash may leave, in either order of the pages."""
    file = opened()
    file.write(1, features(0))
    (path,) = folder.glob("*.records")
    whole = path.read_bytes()
    begin, end = RECORD_BYTES, 2 * RECORD_BYTES
    for lost in (slice(begin + kept, end), slice(begin, end - kept)):
        torn = bytearray(whole)
        torn[lost] = bytes(len(torn[lost]))
        path.write_bytes(torn)
        assert file.read(1, ROWS) is None
    file.write(1, features(0))
    assert file.read(1, ROWS) is not None


def test_readers_beside_writers_read_whole_records_only():
    expected = [features(n).half() for n in range(RECORDS)]

    def work(seed):
        file, found = opened(), 0
        for _ in range(200):
            for record in np.random.default_rng(seed).permutation(RECORDS).tolist():
                known = file.read(record, ROWS)
                found += known is not None
                assert known is None or torch.equal(known, expected[record])
                file.write(record, features(record))
        return found

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 100


def test_a_longer_run_keeps_the_records_of_a_shorter_one():
    short = opened(records=2)
    kept = short.write(1, features(0))
    longer = opened(records=RECORDS)
    longer.write(5, features(1))
    for file in (short, longer, opened(records=1)):
        assert torch.equal(file.read(1, ROWS), kept)


def test_the_files_unused_for_longest_are_removed(folder):
    for number, name in enumerate(("a", "b", "c")):
        opened(name).write(0, features(number))
    for age, path in enumerate(sorted(folder.glob("*.records"), key=os.path.getmtime)):
        os.utime(path, (age, age))
    opened("a")  # used again
    opened("d").write(0, features(3))
    assert [opened(n, limit_bytes=10 * LIMIT).read(0, ROWS) is None for n in "abcd"] == [
        *(False, True, False, False)
    ]
    opened("e", records=3 * RECORDS)
    assert len(list(folder.glob("*.records"))) == 1


def test_a_file_that_a_process_has_open_stays(folder, caplog):
    first = opened("a")
    first.write(0, features(0))
    opened("b").write(0, features(1))
    assert not opened("c", records=3 * RECORDS).is_open
    assert "vectors are not shared, but made by each trial: there is no room for" in caplog.text
    assert opened("d", records=2 * RECORDS).is_open
    assert torch.equal(opened("a").read(0, ROWS), features(0).half())
    assert opened("b", limit_bytes=10 * LIMIT).read(0, ROWS) is None
    del first
    assert opened("c", records=3 * RECORDS).is_open


@pytest.mark.parametrize("problem", ["a file", "read-only"])
def test_a_folder_that_cannot_be_used_is_said_once(problem, folder, caplog):
    if problem == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True)
    try:
        for name in ("a", "b"):
            file = opened(name)
            assert torch.equal(file.write(0, features(0)), features(0).half())
            assert file.read(0, ROWS) is None
    finally:
        if problem != "a file":
            subprocess.run(["umount", folder], check=True)
    assert len(caplog.records) == 1
    assert str(folder) in caplog.text


def test_a_file_takes_no_more_than_half_of_the_free_disk(folder):
    free = shutil.disk_usage(folder.parent).free
    for share, is_stored in ((0.6, False), (0.4, True)):  # takes no room until it is written
        file = opened(records=int(share * free / RECORD_BYTES), limit_bytes=free)
        file.write(0, features(0))
        assert (file.read(0, ROWS) is not None) == is_stored


def test_what_cannot_be_stored_is_rounded_all_the_same(caplog):
    caplog.set_level(logging.WARNING)
    for file in (opened(limit_bytes=RECORD_BYTES), opened("b", limit_bytes=RECORD_BYTES)):
        assert torch.equal(file.write(0, features(0)), features(0).half())
        assert file.read(0, ROWS) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
