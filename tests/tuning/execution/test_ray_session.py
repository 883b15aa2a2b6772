"""A Ray of one's own that is slow to start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from trainers.errors import ConfigError
from tuning.execution.ray_session import STARTS, ray_session

SLOW = "The current node timed out during startup. This could happen because of many things."


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[object]]:
    """Let so many starts come to what Ray raises after 30 s; returns a list of all starts."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start, starts = ray.init, list[object]()

    def too_slow(times: int) -> list[object]:
        def init(**arguments: Any) -> Any:
            starts.append(arguments)
            if len(starts) <= times:
                raise Exception(SLOW)
            return start(**arguments)

        monkeypatch.setattr(ray, "init", init)
        return starts

    return too_slow


@pytest.mark.slow
def test_a_ray_that_is_slow_to_start_is_started_again(
    slow: Callable[[int], list[object]], caplog: pytest.LogCaptureFixture
) -> None:
    starts = slow(1)
    with ray_session():
        assert ray.get(ray.remote(lambda: 3).remote()) == 3
    assert len(starts) == 2
    assert "did not start in time" in caplog.text


def test_a_ray_that_never_starts_is_one_line(slow: Callable[[int], list[object]]) -> None:
    starts = slow(STARTS)
    with (
        pytest.raises(ConfigError, match=r"^cannot connect to a local .* timed out .*very busy\?$"),
        ray_session(),
    ):
        pass
    assert len(starts) == STARTS
    assert not ray.is_initialized()
