"""Run folders on file systems of clusters, not all of which keep locks (Lustre, unless told)."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from trainers.errors import ConfigError
from tuning.runs.journal import JOURNAL_FILE, Journal, is_running


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_as_that_and_not_as_another_driver(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    Journal(tmp_path).close()
    monkeypatch.setattr(fcntl, "flock", refused)
    for attempt in (Journal, is_running):
        with pytest.raises(ConfigError) as caught:
            attempt(tmp_path)
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / JOURNAL_FILE}: it cannot be locked: ")
        assert os.strerror(error) in said
        assert "mount option flock" in said
        assert "another process" not in said
        assert "\n" not in said


def test_a_lock_that_another_driver_holds_is_told_as_that(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    driver = Journal(tmp_path)
    assert is_running(tmp_path)
    with pytest.raises(ConfigError, match="another process is running this search"):
        Journal(tmp_path)
    driver.close()
    assert not is_running(tmp_path)
