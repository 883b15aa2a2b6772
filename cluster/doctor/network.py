"""Who can reach what: Ray's ports from outside, the nodes one another. Pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

from cluster.doctor.facts import NodeFacts
from cluster.doctor.finding import Finding

_EVERYWHERE = ("0.0.0.0", "::")
_REMEDIES = {
    "dashboard": "start the head with --dashboard-host=127.0.0.1 and reach it through ssh -L",
    "GCS": "it listens on every address: close its port to the outside (firewall, security group)",
}


def membership(alive: Sequence[str], dead: Mapping[str, str]) -> Iterator[Finding]:
    """Who belongs to the cluster.

    Args:
        alive: names of nodes.
        dead: of those that died and were not meant to, with what Ray says of it.
    """
    nodes = "node" if len(alive) == 1 else "nodes"
    yield Finding("Ray", "ok", f"{len(alive)} {nodes} alive: {', '.join(alive)}")
    for name, reason in dead.items():
        yield Finding(
            "Ray", "warning", f"dead: {reason or 'Ray does not say why'}",
            "if it should be there, run `ray start` on it again; its raylet.err says more", (name,),
        )  # fmt: skip


def silent(name: str, reason: str) -> Finding:
    """A node that Ray takes for alive and that does not answer."""
    return Finding(
        "Ray", "fault", f"a process there: {reason}",
        "see raylet.out and worker-*.err in its /tmp/ray/session_latest/logs; `ray stop` and start "
        "it again", (name,),
    )  # fmt: skip


def state_api(head: str, error: str) -> Finding:
    """Ray's state API, through which what a stopped trial held is freed.

    Args:
        head: name of the node.
        error: why it does not answer there; empty where it does.
    """
    if not error:
        return Finding("state API", "ok", "answers", nodes=(head,))
    return Finding(
        "state API", "fault",
        f"does not answer: {error}; what stopped trials held would never be freed",
        "start the head with --include-dashboard=true and pip install 'ray[default]' on it",
        (head,),
    )  # fmt: skip


def token(mode: bool, addresses: Sequence[str]) -> Finding:
    """Whether Ray asks for its token.

    Args:
        mode: of the cluster.
        addresses: of its nodes.
    """
    if mode:
        return Finding("security", "ok", "Ray asks for its token (RAY_AUTH_MODE=token)")
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return Finding("security", "ok", "no token asked for, but nothing leaves this machine")
    return Finding(
        "security", "warning",
        "Ray asks for no token: whoever reaches one of its ports runs code as you",
        "`ray get-auth-token --generate`, copy ~/.ray/auth_token to every node, and set "
        "RAY_AUTH_MODE=token for `ray start` and here",
    )  # fmt: skip


def exposure(head: str, facts: NodeFacts, ports: Mapping[str, int]) -> Iterator[Finding]:
    """Services of Ray that listen on a public address.

    Args:
        head: name of the node where they run.
        facts: of that node.
        ports: theirs, by name.
    """
    private = []
    for service, port in ports.items():
        public = _public_addresses(facts, port)
        if not public:
            private.append(f"{service} (port {port})")
            continue
        guard = "only Ray's token keeps others" if facts["token_mode"] else "nothing keeps others"
        yield Finding(
            "security", "warning",
            f"the {service} listens on {', '.join(public)}, port {port}, a public address: {guard} "
            "from running code here",
            _REMEDIES.get(service, _REMEDIES["GCS"]), (head,),
        )  # fmt: skip
    if private and facts["listening"]:
        found = f"on no public address of the machine: {', '.join(private)}"
        yield Finding("security", "ok", found, nodes=(head,))


def _public_addresses(facts: NodeFacts, port: int) -> list[str]:
    listening = {address for address, there in facts["listening"] if there == port}
    if listening & set(_EVERYWHERE):
        listening |= set(facts["interfaces"])
    return sorted(address for address in listening if ipaddress.ip_address(address).is_global)


def connections(refused: Mapping[tuple[str, str], str], workers: int | None) -> Iterator[Finding]:
    """Whether nodes can connect to each other on ports that nobody told the firewall of.

    Args:
        refused: by the names of who asked and who was asked; why, or empty where it worked.
        workers: of a trial, where there is a configuration.
    """
    failed = {pair: why for pair, why in refused.items() if why}
    for (asking, asked), why in failed.items():
        yield Finding(
            "network", "fault" if workers != 1 else "warning",
            f"cannot be reached from {asking} on a port of its choice: {why}; trials of several "
            "workers would wait for each other",
            "open all TCP ports between the nodes", (asked,),
        )  # fmt: skip
    if refused and not failed:
        yield Finding("network", "ok", "nodes reach each other on any port")
