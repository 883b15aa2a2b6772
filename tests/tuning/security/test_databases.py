import importlib.util

import pytest
import ray

from tests.tuning.run_folders import search_file
from trainers.errors import ConfigError
from tuning.security.databases import check_driver
from tuning.views.dashboard import open_storage
from tuning.views.mlflow.client import _warn_of_plain_text, connect


def test_a_missing_driver_is_named_with_its_package(tmp_path):
    assert importlib.util.find_spec("psycopg2") is None  # or this would need another driver
    url = "postgresql+psycopg2://ann:${PG_SECRET}@127.0.0.1:9/a"
    with pytest.raises(ConfigError, match="'psycopg2' is not installed") as caught:
        open_storage(tmp_path, url)
    assert caught.value.key == "search.study_storage"
    assert "lipsum-tune[postgresql]" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="'psycopg2' is not installed") as caught:
        connect(url, "lipsum-tune")
    assert caught.value.key == "search.tracking.uri"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("oracle9://host/a", "unknown database or driver"),
        ("somewhere", "not a URL of a database"),
        ("postgresql+psycopg://ann:pa:ss@host:a/b", "not a URL of a database"),
    ],
)
def test_a_wrong_url_is_one_line_without_its_password(url, why):
    with pytest.raises(ConfigError, match=f"^key = .*: {why}") as caught:
        check_driver("key", url)
    assert "pa:ss" not in str(caught.value)


@pytest.mark.parametrize("key", ["study_storage", "tracking.uri"])
def test_a_missing_driver_ends_a_search_before_it_starts(key, images_root, tmp_path):
    from tuning.search import run_search

    changes = {
        f"search.{key}": "postgresql+psycopg2://127.0.0.1:9/a",
        "search.storage": str(tmp_path),
    }
    connected = ray.is_initialized()  # other tests of this process may share a Ray
    with pytest.raises(ConfigError, match=rf"search\.{key} = .* is not installed"):
        run_search(search_file(images_root, **changes))
    assert ray.is_initialized() == connected
    assert list(tmp_path.iterdir()) == []


def test_the_warning_of_plain_http_has_no_password(caplog):
    for _ in range(2):
        _warn_of_plain_text("http://ann:pa55@8.8.4.4:5000")
        _warn_of_plain_text("http://ann:pa55@127.0.0.1:5000")
    (record,) = caplog.records
    assert record.message.startswith("http://***@8.8.4.4:5000 is a public address without https")
