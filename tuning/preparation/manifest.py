"""A prepared domain's folder: its record, its list of findings, and one preparation at a time.

The record, `preparation.json`, has the keys `status`, `when`, `run`, `layout`, `source`,
`settings`, `digest`, `overwrite` and `versions`; once all shards are made, also `skip_bad`, `bad`,
`findings` and `splits`, which is not read again.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from trainers.data.data_root import PREPARATION_FILE, read_record
from trainers.data.formats.index import Finding, Split
from trainers.data.shards import Shard, ShardReport, finished
from trainers.data.storage import Store
from trainers.errors import ConfigError

FINDINGS = "findings.csv"
LOCK = ".prepare.lock"
PART = re.compile(r"(train|val|test)/part-\d{5}\.parquet")

_PARALLEL_FOOTERS = 16
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

Status = Literal["unfinished", "done", "refused"]
"""`refused` if more images are bad than may be left out."""


class PreparationFailed(RuntimeError):
    """A shard could not be made. Finished shards stay."""


class Found(NamedTuple):
    """A finding and its split."""

    split: Split
    finding: Finding


def write_record(domain: Store, status: Status, values: Mapping[str, Any]) -> None:
    """Replace the record."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"status": status, "when": when, **values}, indent=2, ensure_ascii=False)
    with domain.write(PREPARATION_FILE) as file:
        file.write(f"{text}\n".encode())


def write_findings(domain: Store, findings: Iterable[Found]) -> None:
    """Replace the list of findings: columns path, split, kind, detail, bad."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "split", "kind", "detail", "bad"])
    for split, finding in findings:
        bad = "yes" if finding.bad else "no"
        rows.writerow([finding.path, split, finding.kind, finding.detail, bad])
    with domain.write(FINDINGS) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def other_parts(domain: Store, shards: Sequence[Shard]) -> list[str]:
    """Parquet files in a domain's folder that are not files of the given shards."""
    planned = {shard.path.partition("/")[2] for shard in shards}
    return [p for p in domain.files() if p.endswith(".parquet") and p not in planned]


@contextmanager
def locked(domain: Store, record: Mapping[str, Any] | None) -> Iterator[bool]:
    """Keep other preparations out of a domain's folder. On a bucket only `check_own` detects them.

    `record` is the one that was there when the preparation was planned.

    Yields:
        Whether the folder is locked; buckets and some network file systems have no locks.

    Raises:
        ConfigError: another preparation is running there, or was since the plan was made.
    """
    is_locked = domain.is_local
    lock = FileLock(domain.local_path(LOCK)) if domain.is_local else None
    try:
        if lock is not None:
            domain.local_path().mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise ConfigError("another `prepare` is running there", source=domain.url) from None
            except (NotImplementedError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                    raise
                is_locked = False
        if read_record(domain) != record:
            raise ConfigError("another `prepare` has just changed it", source=domain.url)
        yield is_locked
    finally:
        if lock is not None:
            lock.release()


def check_own(domain: Store, run: str | None) -> None:
    """Raise PreparationFailed if the record is not of this run (None: of an earlier version)."""
    if (read_record(domain) or {}).get("run") != run:
        raise PreparationFailed(f"{domain.url}: another `prepare` has begun there meanwhile")


def check_whole(
    destination: Store, domain: Store, made: Sequence[tuple[Shard, ShardReport]]
) -> None:
    """Check, as seen from this machine, that every shard is there as it was made, and no other.

    Raises:
        PreparationFailed: names the first file that is missing, differs, or is too many.
    """
    shards = [shard for shard, _ in made]
    with ThreadPoolExecutor(_PARALLEL_FOOTERS) as pool:
        there = list(pool.map(partial(finished, destination), shards))
    for (shard, report), found in zip(made, there, strict=True):
        if found != report:
            file = f"{destination.url}/{shard.path}"
            if destination.exists(shard.path):
                raise PreparationFailed(f"{file}: another program has changed it meanwhile")
            raise PreparationFailed(
                f"{file}: a worker has written it, but this machine does not see it: is it a disk "
                "that every machine shares?"
            )
    if others := other_parts(domain, shards):
        problem = "another program has put it there meanwhile"
        raise PreparationFailed(f"{domain.url}/{others[0]}: {problem}")
