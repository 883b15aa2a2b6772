"""MLflow and Optuna's database, as a driver would use them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.version import VERSION

from cluster.doctor import services
from tuning.config.schema import SearchFile
from tuning.mlflow_logging.client import connect


def tracked(uri: str | None) -> SearchFile:
    return SearchFile.model_validate({"search": {"tracking": {"uri": uri}}})


@pytest.fixture
def nobody() -> str:
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as callback:
        return f"127.0.0.1:{callback.getsockname()[1]}"


@pytest.fixture
def server() -> Iterator[str]:
    """Says what its version is, as MLflow's server does, to those who send no password."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/base/version" and "Authorization" not in self.headers
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(b"2.9.1\n")

        def log_message(self, *_: object) -> None:
            return None

    http = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_database_of_mlflow_that_is_there_answers(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    connect(uri, "lipsum-tune")
    (finding,) = services.tracking(tracked(uri), tmp_path)
    assert finding.status == "ok"
    assert f"client {VERSION}" in finding.found


def test_a_database_that_the_first_search_will_make_is_not_made(tmp_path: Path) -> None:
    (finding,) = services.tracking(tracked(None), tmp_path)
    assert finding.status == "ok"
    assert str(tmp_path / "mlflow.db") in finding.found
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are notes, and not a database at all" * 100)
    (finding,) = services.tracking(tracked(None), tmp_path)
    assert finding.status == "fault"
    assert "not a database" in finding.found


def test_a_server_that_does_not_answer_is_a_fault_and_its_password_stays_secret(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "correct-horse")
    uri = f"http://me:${{THE_PASSWORD}}@{nobody}"
    (finding,) = services.tracking(tracked(uri), None)
    assert finding.status == "fault"
    assert "Connection refused" in finding.found
    assert "correct-horse" not in finding.found
    assert "MLFLOW_TRACKING_URI" in finding.remedy


def test_a_server_is_asked_for_its_version_without_the_password(server: str) -> None:
    assert services.server_version(f"http://me:secret@{server}/base/") == "2.9.1"
    assert services.server_version(f"http://{server}/elsewhere") == ""
    assert services.server_version("sqlite:///mlflow.db") == ""


def test_a_study_in_the_run_folder_needs_nothing() -> None:
    assert services.study_storage(None).status == "ok"


def test_a_database_for_the_study_is_opened(tmp_path: Path) -> None:
    assert services.study_storage(f"sqlite:///{tmp_path / 'study.db'}").status == "ok"
    assert services.study_storage(f"sqlite:///{tmp_path / 'no' / 'study.db'}").status == "fault"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql+pymysql://me:${THE_PASSWORD}@{nobody}/studies", "driver"),
        ("nosuch://me:${THE_PASSWORD}@{nobody}/studies", ""),
    ],
)
def test_a_database_that_cannot_be_opened_is_a_fault_and_its_password_stays_secret(
    url: str, said: str, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "correct-horse")
    finding = services.study_storage(url.replace("{nobody}", nobody))
    assert finding.status == "fault"
    assert said in finding.found
    assert "correct-horse" not in finding.found
    assert "me" not in finding.found.replace("name", "").split("@")[0].split("//")[-1]
