"""A folder of runs with an MLflow database."""

import pytest

from tests.tuning.databases import with_database


@pytest.fixture
def runs(tmp_path):
    """A folder of runs, with its database."""
    return with_database(tmp_path)
