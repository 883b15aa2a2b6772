"""Waiting for other processes in tests."""

import time


def wait_until(condition, seconds=1200.0, process=None):
    """The first true value of a condition; fails if it takes longer, or the process ends before."""
    deadline = time.monotonic() + seconds  # long, as the machine may be busy
    while not (found := condition()):
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, condition
        time.sleep(0.1)
    return found
