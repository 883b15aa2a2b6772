"""What a search must leave as it was in the process that runs it."""

import logging
import os

from tuning.execution.signals import restored_process


def test_environment_and_log_handlers_are_restored(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    monkeypatch.setenv("KEPT", "before")
    with restored_process():
        logging.info("as open_clip does")
        monkeypatch.setenv("KEPT", "after")
        monkeypatch.setenv("ADDED", "1")
        assert logging.root.handlers
    assert logging.root.handlers == []
    assert (os.environ["KEPT"], os.environ.get("ADDED")) == ("before", None)
