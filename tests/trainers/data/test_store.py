"""Folders anywhere: what is written appears whole, and no secret is taken from a URL."""

import pytest

from trainers.data.store import open_store
from trainers.errors import ConfigError, StorageFailed


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_what_is_written_is_listed_and_read_back(tmp_path, scheme):
    store = open_store(f"{scheme}{tmp_path}/data").at("real")
    with store.write("val/a.txt") as file:
        file.write(b"hello")
    (info,) = [info for info in store.list(recursive=True) if info.is_file]
    assert store.relative(info) == "val/a.txt"
    assert info.size == 5
    assert store.read_bytes("val/a.txt") == b"hello"
    with store.open("val/a.txt") as file:
        file.seek(1)
        assert file.read(3) == b"ell"
    assert store.exists("val")
    assert not store.exists("test")
    assert store.list("test") == []
    assert store.is_local == (scheme != "memory://")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    store = open_store(tmp_path)
    with store.write("a") as file:
        file.write(b"old")
    with pytest.raises(TypeError), store.write("a") as file:
        file.write("new, but no bytes")
    assert store.read_bytes("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:hunter2@bucket/data",
        "s3://bucket/data?secret_key=hunter2",
        "gs://bucket/data?access_token=hunter2&region=x",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="credentials do not belong in a URL") as error:
        open_store(url)
    assert "hunter2" not in str(error.value)
    assert "bucket/data" in str(error.value)


def test_a_name_in_a_url_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("FOLDER_A", "hunter2")
    store = open_store("memory://${FOLDER_A}/x")
    assert (store.root, store.url) == ("/hunter2/x", "memory://${FOLDER_A}/x")
    with pytest.raises(ConfigError) as error:
        open_store("nosuch://me:${FOLDER_A}@bucket/x")
    assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigError, match=r"nosuch://bucket/x: .*nosuch"):
        open_store("nosuch://bucket/x")


def test_a_host_that_does_not_answer_is_no_mistake():
    with pytest.raises(StorageFailed, match=r"ftp://127.0.0.1:9/x: cannot be reached: .*refused"):
        open_store("ftp://127.0.0.1:9/x")


def test_a_user_name_alone_is_no_secret():
    # So Azure names a container; no request is made before it is read.
    store = open_store("abfss://container@account.dfs.core.windows.net/data")
    assert store.root.endswith("data")
