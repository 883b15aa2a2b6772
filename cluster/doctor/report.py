"""Findings for a terminal, and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.doctor.examine import Diagnosis
from cluster.doctor.finding import Finding, Status, count

_STYLES: dict[Status, str] = {"fault": "bold red", "warning": "yellow", "ok": "green"}
_NAMED = 3
"""So many nodes are named; of more, the rest is counted. `--json` names them all."""


def render(diagnosis: Diagnosis) -> RenderableType:
    """A table, faults first, each with what to do about it; then how many there are."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for finding in diagnosis.findings:
        status = Text(finding.status, _STYLES[finding.status])
        table.add_row(status, Text(finding.check, "bold"), _told(finding, diagnosis.nodes))
    return Group(table, Text(), Text(summary(diagnosis.findings), _STYLES[worst(diagnosis)]))


def _told(finding: Finding, nodes: Sequence[str]) -> Text:
    text = Text()
    if where := _where(finding, nodes):
        text.append(f"{where}: ", "" if finding.status == "ok" else "bold")
    text.append(finding.found, "dim" if finding.status == "ok" else "")
    if finding.remedy:
        text.append(f"\n-> {finding.remedy}", "cyan")
    return text


def _where(finding: Finding, nodes: Sequence[str]) -> str:
    """Whose finding it is, in a few words."""
    if not finding.nodes:
        return ""
    if len(nodes) > 1 and set(finding.nodes) == set(nodes):
        return f"all {len(nodes)} nodes"
    named = ", ".join(finding.nodes[:_NAMED])
    others = len(finding.nodes) - _NAMED
    return f"{named} and {others} more" if others > 0 else named


def worst(diagnosis: Diagnosis) -> Status:
    """The worst status of all findings."""
    return diagnosis.findings[0].status if diagnosis.findings else "ok"


def summary(findings: Sequence[Finding]) -> str:
    """`2 faults, 1 warning`, in words."""
    kinds: tuple[Status, ...] = ("fault", "warning")
    numbers = ((count(findings, kind), kind) for kind in kinds)
    said = [f"{number} {kind}{'' if number == 1 else 's'}" for number, kind in numbers if number]
    return ", ".join(said) or "ready: no faults, no warnings"


def as_json(diagnosis: Diagnosis) -> str:
    """The same for scripts: every finding with all of its nodes."""
    findings = diagnosis.findings
    values = {
        "faults": count(findings, "fault"),
        "warnings": count(findings, "warning"),
        "nodes": list(diagnosis.nodes),
        "findings": [
            {
                "status": finding.status,
                "check": finding.check,
                "nodes": list(finding.nodes),
                "found": finding.found,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }
    return json.dumps(values, indent=2, ensure_ascii=False)
