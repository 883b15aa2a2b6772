"""Who can reach an address, and who must say that they may."""

from __future__ import annotations

import pytest

from trainers.errors import ConfigError
from tuning.security.exposure import check_listens, check_sends, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"])
def test_this_machine_is_for_itself_alone(host: str) -> None:
    assert is_loopback(host)
    assert check_listens(host, "MLflow", allow_remote=False) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "203.0.113.9", "head.example.org"])
def test_a_server_that_others_reach_is_asked_for_and_warned_of(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"--host {host}: MLflow asks .* say --allow-remote"):
        check_listens(host, "MLflow", allow_remote=False)
    assert f"can reach {host}" in str(check_listens(host, "MLflow", allow_remote=True))


def test_nothing_goes_over_a_network_unencrypted_unasked() -> None:
    assert check_sends("http://127.0.0.1:8265", "the token", allow_remote=False) is None
    assert check_sends("https://head.example.org", "the token", allow_remote=False) is None
    with pytest.raises(ConfigError, match=r"the token would go to 10.0.0.5 unencrypted; forward"):
        check_sends("http://10.0.0.5:8265", "the token", allow_remote=False)
    assert "unencrypted" in str(check_sends("http://10.0.0.5:8265", "the token", allow_remote=True))


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "ray://127.0.0.1:10001", "auto", "http://"])
def test_other_addresses_of_ray_are_no_dashboards(url: str) -> None:
    with pytest.raises(ConfigError, match="not of the form http://HOST:PORT"):
        check_sends(url, "the token", allow_remote=True)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="no passwords") as caught:
        check_sends("https://me:hunter2@head.example.org", "the token", allow_remote=True)
    assert "hunter2" not in str(caught.value)
