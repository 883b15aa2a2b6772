"""Temporary folders. Tests of exports and searches use them, too."""

import errno
import fcntl

import pytest

from trainers.folders import appearing, locked, private_lock, temporary_folder, waiting_lock


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


@pytest.mark.parametrize(("folder", "lock"), [(0o755, 0o600), (0o2775, 0o660), (0o700, 0o600)])
def test_a_lock_is_for_those_who_may_write_its_folder(folder, lock, tmp_path):
    tmp_path.chmod(folder)
    path = tmp_path / "lock"
    path.touch()
    path.chmod(0o664)  # as an earlier version left it
    private_lock(path).close()
    assert path.stat().st_mode & 0o777 == lock


def test_a_new_lock_is_the_owners(tmp_path):
    tmp_path.chmod(0o755)
    locks = (private_lock(tmp_path / "0"), waiting_lock(tmp_path / "1", "a test"))
    for number, opened in enumerate(locks):
        with opened:
            assert (tmp_path / str(number)).stat().st_mode & 0o777 == 0o600


def test_a_lock_that_is_a_link_changes_no_other_file(tmp_path):
    other = tmp_path / "other"
    other.touch(0o644)
    (tmp_path / "lock").symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        private_lock(tmp_path / "lock")
    assert other.stat().st_mode & 0o777 == 0o644
