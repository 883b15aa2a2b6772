"""A job that is followed over connections that break, to a real server that breaks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from cluster.follow import follow
from cluster.submit import Job
from tests.cluster.job_server import ALWAYS, JobServer, job_server

NAME = "quickstart-0123abcd"
LOGS = "".join(f"line {number}\n" for number in range(50))
HOURS = 3600.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr("cluster.follow.POLL_S", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")  # not where the job is
    with job_server() as running:
        running.logs, running.jobs[NAME] = LOGS, "RUNNING"
        yield running


def followed(server: JobServer, patience_s: float = HOURS) -> tuple[int, str]:
    """The status with which it ends, and what is said beside the logs."""
    console = Console(file=StringIO(), width=60)
    status = follow(Job(server.url, NAME, True, "/runs"), console, patience_s=patience_s)
    assert isinstance(console.file, StringIO)
    return status, console.file.getvalue()


def test_broken_connections_lose_nothing_of_a_job_and_repeat_nothing(
    server: JobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.hangs_up = Counter(version=1, tail=2, status=3)
    assert followed(server)[0] == 0
    assert capsys.readouterr().out == LOGS
    assert max(server.hangs_up.values()) < 0  # all of that happened


def test_a_job_that_ends_while_its_logs_are_cut_off_is_printed_whole(
    server: JobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.hangs_up, server.jobs[NAME] = Counter(tail=ALWAYS), "SUCCEEDED"
    assert followed(server)[0] == 0
    assert capsys.readouterr().out == LOGS


def test_a_job_whose_logs_are_gone_has_ended_all_the_same(server: JobServer) -> None:
    server.hangs_up, server.jobs[NAME] = Counter(tail=ALWAYS, logs=ALWAYS), "STOPPED"
    assert followed(server)[0] == 130


def test_a_search_that_failed_hands_on_its_own_status(server: JobServer) -> None:
    server.ends, server.exit_code = "FAILED", 75
    status, said = followed(server)
    assert status == 75
    assert "FAILED" in said


def test_a_cluster_that_answers_no_more_is_one_line_that_says_how_to_go_on(
    server: JobServer,
) -> None:
    server.hangs_up = Counter(status=ALWAYS, tail=ALWAYS)
    status, said = followed(server, patience_s=0.3)
    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith(f"{server.url}: no answer for")
    assert "The job may still run" in line
    assert f"ray job logs --follow --address {server.url} {NAME}" in line


def test_a_reader_that_has_gone_ends_it_at_once(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        followed(server)
