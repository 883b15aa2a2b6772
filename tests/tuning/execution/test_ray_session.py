"""A Ray of one's own that is slow to start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from trainers.errors import ConfigError
from tuning.execution.ray_session import STARTS, ray_session, retry_slow_start

SLOW = "The current node timed out during startup. This could happen because of many things."


def start_after(failures: int, message: str = SLOW) -> tuple[Callable[..., Any], list[object]]:
    """A start that fails so often first, and the list of all starts."""
    starts: list[object] = []

    def start(**arguments: Any) -> str:
        starts.append(arguments)
        if len(starts) <= failures:
            raise Exception(message)
        return "started"

    return start, starts


def test_a_slow_start_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    start, starts = start_after(1)
    assert retry_slow_start(start) == "started"
    assert len(starts) == 2
    assert "did not start in time" in caplog.text


def test_another_failure_is_not_retried() -> None:
    start, starts = start_after(1, "no such file")
    with pytest.raises(Exception, match="no such file"):
        retry_slow_start(start)
    assert len(starts) == 1


def test_a_ray_that_never_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start, starts = start_after(STARTS)
    monkeypatch.setattr(ray, "init", start)
    with (
        pytest.raises(ConfigError, match=r"^cannot connect to a local .* timed out .*very busy\?$"),
        ray_session(),
    ):
        pass
    assert len(starts) == STARTS
    assert not ray.is_initialized()
