"""The command line of MLflow's server: what it refuses, what it warns of, what it passes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.mlflow.server import (
    ServerOptions,
    backend_store_uri,
    check_basic_auth,
    command,
    main,
    warning,
)
from trainers.errors import ConfigError


def test_the_server_listens_on_this_machine_alone_and_says_nothing() -> None:
    options = ServerOptions("artifacts")
    words = command(options)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--allowed-hosts" not in words  # MLflow's own: this machine and private addresses
    assert warning(options) is None
    assert warning(ServerOptions("artifacts", host="127.0.0.2")) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "mlflow.example.org"])
def test_other_machines_come_with_a_warning_that_names_the_risk(host: str) -> None:
    options = ServerOptions("artifacts", host=host)
    assert "no password: whoever reaches the port reads, changes and deletes" in (
        warning(options) or ""
    )
    with_passwords = ServerOptions("artifacts", host=host, basic_auth=True)
    assert "plain text: put a proxy with TLS before it" in (warning(with_passwords) or "")
    assert command(with_passwords)[-2:] == ["--app-name", "basic-auth"]


def test_other_machines_are_let_in_by_a_word_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "sqlite:///a")
    with pytest.raises(SystemExit) as ended:
        main(["--artifacts", "here", "--host", "0.0.0.0"])
    assert ended.value.code == 2
    assert "--host 0.0.0.0 lets other machines reach this server" in (
        said := capsys.readouterr().err
    )
    assert "say --allow-remote" in said


def test_passwords_need_a_package_and_a_key_which_are_named() -> None:
    with pytest.raises(ConfigError, match=r"flask_wtf|MLFLOW_FLASK_SERVER_SECRET_KEY"):
        check_basic_auth({})


def test_the_database_comes_from_a_file_or_the_environment_and_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET", "pa55word")
    file = tmp_path / "uri"
    file.write_text("postgresql+psycopg://ann:${SECRET}@host/a\n")
    assert backend_store_uri({}, file) == "postgresql+psycopg://ann:pa55word@host/a"
    assert backend_store_uri({"MLFLOW_BACKEND_STORE_URI": "sqlite:///a"}, None) == "sqlite:///a"
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["--artifacts", "here"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("cluster.mlflow: MLFLOW_BACKEND_STORE_URI is empty")
