"""What doctor found: one line each, with what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from tuning.security.redaction import redact

Status = Literal["fault", "warning", "ok"]
"""A fault will stop a search or falsify it; a warning may, or costs time."""

# Not PWD, which is the folder that a shell is in.
_SECRET_NAME = re.compile(
    r"(pass(word|wd)?|_pwd|secret|token|(api|access)_?key|credentials?)$", re.I
)
_SHORT = 4  # characters; what is no longer stands in many a word

SEVERITY: tuple[Status, ...] = ("fault", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """One check's outcome, for one or several nodes."""

    check: str
    """What was looked at, in a word or two."""
    status: Status
    found: str
    remedy: str = ""
    """What to do about it, a sentence or a command; none where all is well."""
    nodes: tuple[str, ...] = ()
    """Of whom it is true; of nobody in particular where there are none."""


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, else in their order; those that say the same of several nodes in one."""
    together: dict[tuple[str, str, str, str, bool], Finding] = {}
    for finding in findings:
        of_nodes = bool(finding.nodes)
        key = (finding.check, finding.status, finding.found, finding.remedy, of_nodes)
        if (known := together.get(key)) is None:
            together[key] = finding
        else:
            nodes = dict.fromkeys((*known.nodes, *finding.nodes))
            together[key] = replace(known, nodes=tuple(nodes))
    return sorted(together.values(), key=lambda finding: SEVERITY.index(finding.status))


def without_secrets(finding: Finding, urls: Iterable[str] = ()) -> Finding:
    """The same, should a message of some library say what it must not.

    Args:
        finding: to be shown.
        urls: as configured, whose variables hold secrets; so do those that are called so.
    """
    text = redact(finding.found)
    for url in urls:
        text = redact(text, url)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) > _SHORT:
            text = text.replace(value, "***")
    return replace(finding, found=text)


def count(findings: Iterable[Finding], status: Status) -> int:
    """How many of them have that status."""
    return sum(finding.status == status for finding in findings)
