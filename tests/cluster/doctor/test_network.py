"""What is made of ports and tokens."""

from __future__ import annotations

import socket

import pytest

from cluster.doctor.network import connections, exposure, membership, token
from cluster.doctor.node_facts import listening
from tests.cluster.doctor.accounts import facts

PORTS = {"GCS": 6379, "dashboard": 8265}
PUBLIC = "8.8.4.4"


def test_a_service_on_a_public_address_is_a_warning_that_names_the_risk() -> None:
    account = facts(
        interfaces=["127.0.0.1", "10.0.0.4", PUBLIC, "fe80::1", "2001:4860:4860::8844"],
        listening=[("::", 6379), ("127.0.0.1", 8265), (PUBLIC, 22)],
        token_mode=False,
    )
    warning, fine = exposure("head", account, PORTS)
    assert warning.status == "warning"
    assert f"the GCS listens on 2001:4860:4860::8844, {PUBLIC}, port 6379" in warning.found
    assert "nothing keeps others from running code here" in warning.found
    assert "firewall" in warning.remedy
    assert fine.status == "ok"
    assert "dashboard (port 8265)" in fine.found


def test_a_dashboard_for_everybody_is_to_be_closed() -> None:
    account = facts(interfaces=[PUBLIC], listening=[(PUBLIC, 8265)])
    warning, _ = exposure("head", account, PORTS)
    assert "only Ray's token keeps others" in warning.found
    assert "--dashboard-host=127.0.0.1" in warning.remedy


def test_services_on_private_addresses_are_well() -> None:
    account = facts(listening=[("0.0.0.0", 6379), ("10.0.0.4", 8265)])
    (finding,) = exposure("head", account, PORTS)
    assert finding.status == "ok"


def test_where_the_system_does_not_say_who_listens_nothing_is_claimed() -> None:
    assert not list(exposure("head", facts(listening=[]), PORTS))


def test_the_systems_own_tables_show_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as v4:
        assert v4.getsockname() in listening()
        port = v4.getsockname()[1]
    assert ("127.0.0.1", port) not in listening()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as v6:
        assert ("::1", v6.getsockname()[1]) in listening()


@pytest.mark.parametrize(
    ("mode", "addresses", "status"),
    [
        (True, ["10.0.0.4"], "ok"),
        (False, ["127.0.0.1", "127.0.0.1"], "ok"),
        (False, ["127.0.0.1", "10.0.0.4"], "warning"),
    ],
)
def test_a_cluster_of_machines_should_ask_for_a_token(
    mode: bool, addresses: list[str], status: str
) -> None:
    finding = token(mode, addresses)
    assert finding.status == status
    assert ("RAY_AUTH_MODE=token" in finding.remedy) == (status == "warning")


def test_nodes_that_died_are_named() -> None:
    alive, dead = membership(["a", "b"], {"c": "health check failed"})
    assert alive.found == "2 nodes alive: a, b"
    assert (dead.status, dead.nodes) == ("warning", ("c",))
    assert "health check failed" in dead.found


def test_nodes_that_cannot_be_reached_are_faults_where_trials_need_them() -> None:
    refused = {("a", "b"): "", ("b", "a"): "timed out"}
    (finding,) = connections(refused, 2)
    assert (finding.status, finding.nodes) == ("fault", ("a",))
    assert "from b" in finding.found
    assert [f.status for f in connections(refused, 1)] == ["warning"]
    assert [f.status for f in connections({("a", "b"): "", ("b", "a"): ""}, 2)] == ["ok"]
    assert not list(connections({}, 2))
