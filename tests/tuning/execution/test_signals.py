"""What a search must leave as it was in the process that runs it."""

import logging
import signal

from tuning.execution.signals import restored_process


def test_log_handlers_and_signals_are_restored(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    before = signal.getsignal(signal.SIGUSR1)
    with restored_process():
        logging.info("as open_clip does")
        signal.signal(signal.SIGUSR1, lambda *_: None)
        assert logging.root.handlers
    assert logging.root.handlers == []
    assert signal.getsignal(signal.SIGUSR1) == before
