from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import ray

from tests.tuning.run_folders import search_file
from trainers.errors import ConfigError
from tuning.algorithms.study import open_storage
from tuning.mlflow_logging.client import _warn_of_plain_text, connect
from tuning.security.redaction import check_driver, goes_unencrypted, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no route to https://ann:pa55@host/x?token=abc", "no route to https://***@host/x?token=***"),
        ("postgresql+psycopg://ann:pa/55@host/a", "postgresql+psycopg://***@host/a"),
        ("at 'postgresql://ann:p@55@host/a': x@y", "at 'postgresql://***@host/a': x@y"),
        ("https://token@host/", "https://***@host/"),
        ("s3://bucket/folder and http://host:5000/x", "s3://bucket/folder and http://host:5000/x"),
        ("file:///home/ann@work/runs", "file:///home/ann@work/runs"),
    ],
)  # fmt: skip
def test_secrets_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_what_a_url_takes_from_the_environment_is_not_shown_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PASSWORD_A", "hunter2")
    monkeypatch.delenv("PASSWORD_B", raising=False)
    url = "postgresql://ann:${PASSWORD_A}@host/$PASSWORD_B"
    assert redact("authentication failed (hunter2)", url) == "authentication failed (***)"
    assert redact("authentication failed (hunter2)") == "authentication failed (hunter2)"


@pytest.mark.parametrize(
    ("url", "unencrypted"),
    [
        ("http://8.8.8.8:5000", True),
        ("http://[2606:4700::1111]:5000/mlflow", True),
        ("https://8.8.8.8:5000", False),
        ("http://127.0.0.1:5000", False),
        ("http://localhost:5000", False),
        ("http://[::1]:5000", False),
        ("http://10.1.2.3:5000", False),
        ("http://192.168.1.2", False),
        ("http://nowhere.invalid:5000", False),
        ("sqlite:////tmp/mlflow.db", False),
    ],
)
def test_plain_http_to_a_public_address_goes_unencrypted(url: str, unencrypted: bool) -> None:
    assert goes_unencrypted(url) is unencrypted


def test_a_driver_that_is_missing_is_named_with_what_to_install_and_to_write(
    tmp_path: Path,
) -> None:
    assert importlib.util.find_spec("psycopg2") is None  # or this would need another driver
    url = "postgresql+psycopg2://ann:${PG_SECRET}@127.0.0.1:9/a"
    advice = r"'psycopg2' is not installed; .*lipsum-tune\[postgresql\].*postgresql\+psycopg://"
    with pytest.raises(ConfigError, match=rf"search\.study_storage = .*{advice}"):
        open_storage(tmp_path, url)
    with pytest.raises(ConfigError, match=rf"search\.tracking\.uri = .*{advice}"):
        connect(url, "lipsum-tune")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("oracle9://host/a", "no such database or driver"),
        ("somewhere", "no URL of a database"),
        ("postgresql+psycopg://ann:pa:ss@host:a/b", "no URL of a database"),
        ("sqlite:///a.db", None),
    ],
)
def test_a_url_that_nobody_can_open_is_one_line(url: str, why: str | None) -> None:
    if why is None:
        check_driver("key", url)
        return
    with pytest.raises(ConfigError, match=f"^key = .*: {why}") as caught:
        check_driver("key", url)
    assert "pa:ss" not in str(caught.value)


@pytest.mark.parametrize("key", ["study_storage", "tracking.uri"])
def test_a_search_that_lacks_a_driver_ends_before_anything_starts(
    key: str, images_root: Path, tmp_path: Path
) -> None:
    from tuning.execution.run_search import run_search

    changes = {
        f"search.{key}": "postgresql+psycopg2://127.0.0.1:9/a",
        "search.storage": str(tmp_path),
    }
    with pytest.raises(ConfigError, match=rf"search\.{key} = .* is not installed"):
        run_search(search_file(images_root, **changes))
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_the_warning_of_plain_text_comes_once_and_holds_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        _warn_of_plain_text("http://ann:pa55@8.8.4.4:5000")
        _warn_of_plain_text("http://ann:pa55@127.0.0.1:5000")
    (record,) = caplog.records
    assert record.message.startswith("http://***@8.8.4.4:5000 is a public address without https")
