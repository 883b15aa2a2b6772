"""Temporary folders without locks. With locks, tests of exports and searches use them."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from trainers.folders import appearing, temporary_folder


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux refuses an exclusive lock of a folder on NFS with EBADF."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder("t-", tmp_path) as first, temporary_folder("t-", tmp_path) as second:
        assert (first.is_dir(), second.is_dir()) == (True, True)
    with appearing(tmp_path / "new") as folder:
        (folder / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]
