import pytest
import ray

from tests.tuning.run_folders import search_file
from trainers.errors import ConfigError
from tuning.security.databases import check_drivers


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql+psycopg2://ann:pa:ss@127.0.0.1:9/a", "psycopg2"),
        ("postgresql+psycopg9://ann:pa:ss@127.0.0.1:9/a", "psycopg9"),
        ("postgresql+psycopg://ann:pa:ss@host:a/b", "'a'"),
    ],
)
def test_a_wrong_url_or_a_missing_driver_is_one_line_without_its_password(url, why):
    with pytest.raises(ConfigError, match=rf"^key = .*{why}.*lipsum-tune\[postgresql\]") as caught:
        check_drivers({"key": url})
    assert "pa:ss" not in str(caught.value)


@pytest.mark.parametrize("key", ["study_storage", "tracking.uri"])
def test_a_missing_driver_ends_a_search_before_it_starts(key, images_root, tmp_path):
    from tuning.search import run_search

    changes = {
        f"search.{key}": "postgresql+psycopg2://127.0.0.1:9/a",
        "search.storage": str(tmp_path),
    }
    connected = ray.is_initialized()  # other tests of this process may share a Ray
    with pytest.raises(ConfigError, match=rf"search\.{key} = .*psycopg2"):
        run_search(search_file(images_root, **changes))
    assert ray.is_initialized() == connected
    assert list(tmp_path.iterdir()) == []
