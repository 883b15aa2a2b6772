"""Waiting for other processes in tests."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_until(
    condition: Callable[[], Any],
    seconds: float = 1200.0,
    process: subprocess.Popen[bytes] | None = None,
) -> Any:
    """The first true value of a condition; fails if it takes longer, or the process ends before."""
    deadline = time.monotonic() + seconds  # long, as the machine may be busy
    while not (found := condition()):
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, condition
        time.sleep(0.1)
    return found
