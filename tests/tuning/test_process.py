"""What a search must leave as it was in the process that runs it."""

import signal
from contextlib import nullcontext

import pytest

from tuning.process import interrupted_by_signals


def left(*_):
    """As Ray Tune leaves one."""


@pytest.mark.parametrize(
    ("number", "handler", "expected"),
    [
        (signal.SIGINT, left, pytest.raises(KeyboardInterrupt)),
        (signal.SIGTERM, left, pytest.raises(KeyboardInterrupt)),
        (signal.SIGINT, signal.SIG_IGN, nullcontext()),  # of a command in the background
    ],
)
def test_a_signal_interrupts_unless_shells_have_it_ignored(number, handler, expected):
    before = signal.signal(number, handler)
    try:
        with expected, interrupted_by_signals():
            signal.raise_signal(number)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
