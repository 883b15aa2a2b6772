"""Following a job over connections that break."""

from collections import Counter
from io import StringIO

import pytest
from rich.console import Console

from cluster.follow import follow
from cluster.submit import Job
from tests.cluster.job_server import ALWAYS, job_server

NAME = "quickstart-0123abcd"
LOGS = "".join(f"line {number}\n" for number in range(50))
HOURS = 3600.0


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("cluster.follow.POLL_S", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")  # not where the job is
    with job_server() as running:
        running.logs, running.jobs[NAME] = LOGS, "RUNNING"
        yield running


def followed(server, patience_s=HOURS):
    """Exit status of `follow`, and its messages."""
    console = Console(file=StringIO(), width=60)
    status = follow(Job(server.url, NAME, True, "/runs"), console, patience_s=patience_s)
    assert isinstance(console.file, StringIO)
    return status, console.file.getvalue()


def test_broken_connections_lose_and_repeat_no_logs(server, capsys):
    server.hangs_up = Counter(version=1, tail=2, status=3)
    assert followed(server)[0] == 0
    assert capsys.readouterr().out == LOGS
    assert max(server.hangs_up.values()) < 0  # all of these happened


def test_logs_are_complete_if_the_job_ends_during_a_break(server, capsys):
    server.hangs_up, server.jobs[NAME] = Counter(tail=ALWAYS), "SUCCEEDED"
    assert followed(server)[0] == 0
    assert capsys.readouterr().out == LOGS


def test_lost_logs_do_not_hide_the_end(server):
    server.hangs_up, server.jobs[NAME] = Counter(tail=ALWAYS, logs=ALWAYS), "STOPPED"
    assert followed(server)[0] == 130


def test_the_status_of_a_failed_search_is_returned(server):
    server.ends, server.exit_code = "FAILED", 75
    status, said = followed(server)
    assert status == 75
    assert "FAILED" in said


def test_a_lost_cluster_is_one_line_with_a_remedy(server):
    server.hangs_up = Counter(status=ALWAYS, tail=ALWAYS)
    status, said = followed(server, patience_s=0.3)
    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith(f"{server.url}: no answer for")
    assert "The job may still run" in line
    assert f"ray job logs --follow --address {server.url} {NAME}" in line


def test_a_closed_pipe_ends_the_following(server, monkeypatch):
    class Closed(StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        followed(server)
