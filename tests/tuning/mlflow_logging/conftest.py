"""A folder of runs with an MLflow database, which takes seconds to create and is copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tuning.mlflow_logging.client import connect, default_tracking_uri


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs."""
    folder = tmp_path_factory.mktemp("empty")
    connect(default_tracking_uri(folder), "lipsum-tune")
    return folder / "mlflow.db"


@pytest.fixture
def runs(empty_database: Path, tmp_path: Path) -> Path:
    """A folder of runs, with its database."""
    shutil.copy(empty_database, tmp_path)
    return tmp_path
