"""A folder of runs with an MLflow database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tuning.databases import with_database


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs, with its database."""
    return with_database(tmp_path)
