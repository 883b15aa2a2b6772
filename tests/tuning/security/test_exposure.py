import pytest

from trainers.errors import ConfigError
from tuning.security.exposure import check_sends, goes_unencrypted, is_loopback


def test_loopback_hosts_are_known():
    assert all(map(is_loopback, ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"]))
    others = ["0.0.0.0", "::", "10.0.0.5", "203.0.113.9", "head.example.org"]
    assert not any(map(is_loopback, others))


def test_plain_http_over_a_network_needs_permission():
    assert check_sends("http://127.0.0.1:8265", "the token", allow_remote=False) is None
    assert check_sends("https://head.example.org", "the token", allow_remote=False) is None
    with pytest.raises(ConfigError, match=r"the token would be sent to 10.0.0.5 unencrypted"):
        check_sends("http://10.0.0.5:8265", "the token", allow_remote=False)
    assert "unencrypted" in str(check_sends("http://10.0.0.5:8265", "the token", allow_remote=True))


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "ray://127.0.0.1:10001", "auto", "http://"])
def test_other_addresses_of_ray_are_refused(url):
    with pytest.raises(ConfigError, match="not of the form http://HOST:PORT"):
        check_sends(url, "the token", allow_remote=True)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(ConfigError, match="must not contain a password") as caught:
        check_sends("https://me:hunter2@head.example.org", "the token", allow_remote=True)
    assert "hunter2" not in str(caught.value)


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
def test_plain_http_to_a_public_address_is_unencrypted(url, unencrypted):
    assert goes_unencrypted(url) is unencrypted
