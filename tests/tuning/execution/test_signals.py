"""What a search must leave as it was in the process that runs it."""

import signal

import pytest

from tuning.execution.signals import interrupted_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_whatever_handler_was_left(number):
    def left(*_):
        """As Ray Tune leaves one."""

    before = signal.signal(number, left)
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            signal.raise_signal(number)
        assert signal.getsignal(number) is left
    finally:
        signal.signal(number, before)
