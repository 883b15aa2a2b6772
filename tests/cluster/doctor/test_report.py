"""Findings as people and scripts get them."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cluster.doctor.examine import Diagnosis
from cluster.doctor.finding import Finding, merged, without_secrets
from cluster.doctor.report import as_json, render, summary, worst

NODES = ("a", "b", "c", "d", "e")
FINDINGS = [
    *(Finding("clock", "ok", "agrees to 0.01 s", nodes=(name,)) for name in NODES),
    *(Finding("versions", "warning", "numpy 1 there", "pip install", (n,)) for n in NODES[:4]),
    Finding("MLflow", "fault", "no answer [/bold] at all", "start it"),
]


def shown(diagnosis: Diagnosis, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(diagnosis))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


def test_nodes_that_agree_make_one_finding_and_the_worst_comes_first() -> None:
    together = merged(FINDINGS)
    assert [(f.status, f.nodes) for f in together] == [
        ("fault", ()), ("warning", NODES[:4]), ("ok", NODES),
    ]  # fmt: skip


def test_a_table_says_where_what_and_what_to_do_then_how_many() -> None:
    lines = shown(Diagnosis(tuple(merged(FINDINGS)), NODES))
    assert [line.split()[0] for line in lines if line.strip()] == [
        "fault", "->", "warning", "->", "ok", "1",
    ]  # fmt: skip
    assert "no answer [/bold] at all" in lines[0]
    assert "a, b, c and 1 more: numpy 1 there" in lines[2]
    assert "all 5 nodes: agrees" in lines[4]
    assert lines[-1] == "1 fault, 1 warning"


def test_a_narrow_table_wraps_and_cuts_nothing() -> None:
    found = " ".join(f"word{number}" for number in range(40))
    lines = shown(Diagnosis((Finding("x", "fault", found, "do it"),), ()), width=50)
    assert max(map(len, lines)) <= 50
    assert all(f"word{number}" in " ".join(lines).split() for number in range(40))


def test_a_summary_counts_in_words() -> None:
    fault, warning = Finding("x", "fault", "y"), Finding("x", "warning", "y")
    assert summary([fault, fault, warning]) == "2 faults, 1 warning"
    assert summary([warning, warning]) == "2 warnings"
    assert summary([Finding("x", "ok", "y")]) == "ready: no faults, no warnings"
    assert worst(Diagnosis((), ())) == "ok"


def test_scripts_get_every_node_of_every_finding() -> None:
    values = json.loads(as_json(Diagnosis(tuple(merged(FINDINGS)), NODES)))
    assert (values["faults"], values["warnings"], values["nodes"]) == (1, 1, list(NODES))
    assert [f["nodes"] for f in values["findings"]] == [[], list(NODES[:4]), list(NODES)]
    assert values["findings"][0]["remedy"] == "start it"


def test_what_the_environment_keeps_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("WHERE_TO", "battery-staple")
    monkeypatch.setenv("PWD", "/home/me")
    text = "/home/me: http://me:{0}@host refused {0} and battery-staple".format("correct-horse")
    shown = without_secrets(Finding("x", "fault", text), ["http://${WHERE_TO}@host"])
    assert shown.found == "/home/me: http://***@host refused *** and ***"
