from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import InterfaceError, OperationalError

from tuning.mlflow_logging.client import is_refusal
from tuning.mlflow_logging.write_queue import WriteQueue

URI = "http://ann:${QUEUE_SECRET}@mlflow.test"


def queue(retry_seconds: float = 0.01) -> WriteQueue:
    return WriteQueue(URI, retry_seconds)


def failing(times: int, error: Exception, then: Callable[[], None]) -> Callable[[], None]:
    """A write that raises so often before it is done."""
    left = [times]

    def write() -> None:
        if left[0]:
            left[0] -= 1
            raise error
        then()

    return write


def test_writes_are_done_in_order_on_one_other_thread() -> None:
    writes, done = queue(), []
    for number in range(100):
        writes.append(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    assert writes.finish(30)
    assert done == [(number, "mlflow-writer") for number in range(100)]
    assert len(writes) == 0


def test_who_appends_does_not_wait_for_a_server_that_hangs() -> None:
    writes, hangs, done = queue(), threading.Event(), []
    writes.append(lambda: done.append(hangs.wait(60)))
    for number in range(1000):
        writes.append(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == []  # all were taken, and the first of them still hangs
    assert not writes.finish(0.1)
    hangs.set()
    assert writes.finish(30)
    assert done == [True, *range(1000)]


def test_a_write_that_fails_keeps_its_place_and_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writes, done = queue(), []
    writes.append(lambda: done.append(0))
    writes.append(failing(5, ConnectionError("refused"), lambda: done.append(1)))
    writes.append(lambda: done.append(2))
    assert writes.finish(30)
    assert done == [0, 1, 2]
    assert [r.message.split("mlflow.test ")[1].split(";")[0] for r in caplog.records] == [
        "does not answer",
        "answers again",
    ]


def test_a_write_that_is_refused_is_dropped_and_its_reason_told_once_without_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("QUEUE_SECRET", "pa55word")
    writes, done = queue(), []

    def refused() -> None:
        raise MlflowException("no run; pa55word, http://a:b@c/?token=d", INVALID_PARAMETER_VALUE)

    for write in (refused, refused, lambda: done.append(1)):
        writes.append(write)
    assert writes.finish(30)
    assert done == [1]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.endswith("refused a write: no run; ***, http://***@c/?token=***")
    assert "http://***@mlflow.test" in record.message


def test_waiting_lasts_while_writes_are_done_and_ends_when_none_is() -> None:
    writes = queue()
    for _ in range(8):
        writes.append(lambda: time.sleep(0.25))
    assert writes.finish(1.0)  # two seconds of work, but never one without a write
    writes.append(failing(10**9, ConnectionError("refused"), lambda: None))
    assert not writes.finish(0.2)
    assert len(writes) == 1
    writes.close()


def test_the_end_asks_a_server_at_once_and_not_after_the_next_interval() -> None:
    writes, done = queue(retry_seconds=3600), []
    failed = threading.Event()

    def write() -> None:
        if not failed.is_set():
            failed.set()
            raise ConnectionError("refused")
        done.append(1)

    writes.append(write)
    assert failed.wait(30)
    assert writes.finish(60)
    assert done == [1]


def test_a_closed_queue_begins_no_write_and_leaves_no_thread() -> None:
    writes, done, began, hangs = queue(), [], threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def hang() -> None:
        threads.append(threading.current_thread())
        began.set()
        done.append(hangs.wait(60))

    writes.append(hang)
    writes.append(lambda: done.append(2))
    assert began.wait(30)
    (thread,) = threads
    assert thread.daemon  # a process that ends does not wait for it
    writes.close()
    writes.append(lambda: done.append(3))
    hangs.set()
    thread.join(30)
    assert not thread.is_alive()
    assert done == [True]


def test_a_queue_with_nothing_to_write_has_no_thread() -> None:
    writes, threads = queue(), []
    for _ in range(2):
        writes.append(lambda: threads.append(threading.current_thread()))
        assert writes.finish(30)
        threads[-1].join(30)
        assert not threads[-1].is_alive()


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (ConnectionError("refused"), False),
        (TimeoutError("hangs"), False),
        (KeyError("ours"), True),
        (_raised(MlflowException("no such run", INVALID_PARAMETER_VALUE), KeyError()), True),
        (_raised(MlflowException("locked", TEMPORARILY_UNAVAILABLE), KeyError()), False),
        (_raised(MlflowException("500"), OSError("reset")), False),
        (_raised(MlflowException("set the tracking URI to the running server")), True),
        (
            _raised(
                MlflowException("closed", INVALID_PARAMETER_VALUE),
                InterfaceError("insert", {}, Exception("the connection is closed")),
            ),
            False,
        ),
        (
            _raised(
                MlflowException("closed", INVALID_PARAMETER_VALUE),
                OperationalError("insert", {}, Exception("gone"), connection_invalidated=True),
            ),
            False,
        ),
    ],
)
def test_what_may_come_back_is_no_refusal(error: Exception, refusal: bool) -> None:
    assert is_refusal(error) is refusal
