"""Folders of runs with an MLflow database, and what it contains."""

import pytest

from tests.tuning import fakes
from tests.tuning.databases import with_database
from tests.tuning.run_folders import search_file, write_run


@pytest.fixture
def runs(tmp_path):
    return with_database(tmp_path / "runs")


@pytest.fixture
def run(runs, images_root):
    """A finished search of seven trials, one of them pruned and one failed, and a reference."""
    return write_run(runs / "search", search_file(images_root), fakes.finished_search()[:8])
