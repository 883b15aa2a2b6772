from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trainers.workers import TwoWorkers


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoWorkers]:
    """Two processes that train together; the first test that asks for them waits ten seconds."""
    workers = TwoWorkers(tmp_path_factory.mktemp("workers"))
    yield workers
    workers.stop()
