import pytest

from tests.trainers.workers import TwoWorkers


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory):
    """Two processes that train together; the first test that asks for them waits ten seconds."""
    workers = TwoWorkers(tmp_path_factory.mktemp("workers"))
    yield workers
    workers.stop()
