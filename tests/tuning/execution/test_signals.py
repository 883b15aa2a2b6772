"""What a search must leave as it was in the process that runs it; `test_sessions` sends signals."""

import signal

from tuning.execution.signals import interrupted_by_signals


def test_a_command_in_the_background_goes_on_ignoring_sigint():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
