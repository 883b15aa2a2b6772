"""What a preparation leaves beside a domain's shards: its record, and the list of its findings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from trainers.data.data_root import PREPARATION_FILE
from trainers.data.formats.index import Finding, Split
from trainers.data.storage import Store
from trainers.errors import ConfigError

RECORD = PREPARATION_FILE
FINDINGS = "findings.csv"

Status = Literal["unfinished", "done", "refused"]


class Found(NamedTuple):
    """A finding and the split that it was made in."""

    split: Split
    finding: Finding


def read_record(domain: Store) -> dict[str, Any] | None:
    """The record in a domain's folder, if there is one.

    Raises:
        ConfigError: it cannot be read.
    """
    if not domain.info(RECORD).is_file:
        return None
    try:
        record = json.loads(domain.read_bytes(RECORD))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ConfigError(f"{domain.url}/{RECORD}: not a record of `prepare`; remove it")
    return record


def write_record(domain: Store, status: Status, values: Mapping[str, Any]) -> None:
    """Replace the record; `values` may say anything that JSON can."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"status": status, "when": when, **values}, indent=2, ensure_ascii=False)
    with domain.write(RECORD) as file:
        file.write(f"{text}\n".encode())


def write_findings(domain: Store, findings: Iterable[Found]) -> None:
    """Replace the list of findings: columns path, split, kind, detail, bad."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "split", "kind", "detail", "bad"])
    for split, finding in findings:
        bad = "yes" if finding.bad else "no"
        table.writerow([finding.path, split, finding.kind, finding.detail, bad])
    with domain.write(FINDINGS) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
