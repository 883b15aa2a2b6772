"""Temporary folders. Tests of exports and searches use them, too."""

import errno
import fcntl

from trainers.folders import appearing, locked, temporary_folder


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    """Linux refuses an exclusive lock of a folder on NFS with EBADF."""

    def refuse(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder("t-", tmp_path) as first, temporary_folder("t-", tmp_path) as second:
        assert (first.is_dir(), second.is_dir()) == (True, True)
    with appearing(tmp_path / "new") as folder:
        (folder / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]


def test_only_what_this_module_left_is_removed(tmp_path):
    (tmp_path / ".new-old" / "precious").mkdir(parents=True)
    left = tmp_path / ".new.lipsum-tune-unfinished-0"
    left.mkdir()
    (used := left.with_name(f"{left.name}1")).mkdir()
    with locked(used), appearing(tmp_path / "new"):
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-old", used.name, "new"]
    assert (tmp_path / ".new-old" / "precious").is_dir()
