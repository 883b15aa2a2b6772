"""Reports that wait for their OOD domains, which other processes evaluate while training goes on.

For each of them, the run leaves a folder with the evaluated weights and the report so far, which
knows the ID domain alone; `trainers.deferred` measures the others from the weights. The report is
written last: a folder without it is what a kill left. Whoever has the measures of all OOD domains
puts the report together, and removes the folder once somebody wrote the whole report down. Where a
report that lacks nothing has to wait for one that does, its folder holds it alone. Knows no
open_clip, which whoever waits for the measures need not import.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pyarrow import fs

from trainers.checkpoint import WEIGHTS
from trainers.data.storage import Store
from trainers.errors import storage_failures
from trainers.flat_metrics import Domains, flat_metrics, temperature_name

PENDING = "pending"
"""The folder of all of them, in that of a run."""
REPORT = "report.json"
SPLIT = "val"
_ID = f"id_{SPLIT}/"


@dataclass(frozen=True)
class Pending:
    """A report that waits for its OOD domains, or for one before it that does."""

    name: str
    """Of its folder."""
    step: int
    metrics: Mapping[str, float]
    """Flat: all that the run itself has to say at this step."""
    id_domain: str
    """Empty where the report lacks nothing."""
    ood_domains: tuple[str, ...]
    """That it waits for."""

    @property
    def temperature(self) -> float:
        """That the ID domain settled, for `ece_scaled` of the others."""
        return self.metrics[temperature_name(SPLIT)]

    def completed(self, by_domain: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The whole report, under the names that the run itself would have used.

        Args:
            by_domain: the measures of all OOD domains.
        """
        return completed(self.metrics, by_domain, self)


@dataclass(frozen=True)
class Evaluated:
    """What a process found of one domain, and what that took."""

    measures: Mapping[str, float]
    """By their names in `domain_sums.MEASURES`."""
    cpu_seconds: float
    gpu_seconds: float
    """Wall clock, where it ran on a GPU."""


def is_complete(metrics: Mapping[str, float], domains: Domains) -> bool:
    """Whether a report has its OOD domains."""
    return all(f"ood_{SPLIT}/{domain}/acc" in metrics for domain in domains.ood_domains)


def completed(
    metrics: Mapping[str, float], by_domain: Mapping[str, Mapping[str, float]], domains: Domains
) -> dict[str, float]:
    """A report of the ID domain with the OOD domains put in.

    Args:
        metrics: of the report.
        by_domain: the measures of all OOD domains.
        domains: which they are.
    """
    of_id = {n.removeprefix(_ID): v for n, v in metrics.items() if n.startswith(_ID)}
    of_id.pop(temperature_name(SPLIT).removeprefix(_ID))
    return {**metrics, **flat_metrics({domains.id_domain: of_id, **by_domain}, domains, SPLIT)}


def leave_pending(
    store: Store, checkpoint: Path, step: int, metrics: Mapping[str, float], domains: Domains
) -> Pending:
    """Leave the weights of a checkpoint, and the report that goes with them, in a new folder.

    Args:
        store: the folder of all that is pending of a run.
        checkpoint: that was just written.
        step: of the report.
        metrics: of the report.
        domains: of the run.

    Raises:
        StorageFailed: they cannot be written.
    """
    ood_domains = tuple(domains.ood_domains)
    pending = Pending(_new_name(step), step, dict(metrics), domains.id_domain, ood_domains)
    folder = store.at(pending.name)
    with storage_failures(folder.url, "the weights to be evaluated cannot be written"):
        with (checkpoint / WEIGHTS).open("rb") as source, folder.write(WEIGHTS) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        _write_report(folder, pending)
    return pending


def leave_complete(store: Store, step: int, metrics: Mapping[str, float]) -> Pending:
    """Leave a report that lacks nothing, but has to wait for one before it, in a new folder.

    Args:
        store: the folder of all that is pending of a run.
        step: of the report.
        metrics: of the report.

    Raises:
        StorageFailed: it cannot be written.
    """
    pending = Pending(_new_name(step), step, dict(metrics), "", ())
    folder = store.at(pending.name)
    with storage_failures(folder.url, "a report cannot be written"):
        _write_report(folder, pending)
    return pending


def _new_name(step: int) -> str:
    """Of no other folder: a run that went back to an earlier checkpoint comes to a step again."""
    return f"{_prefix(step)}{secrets.token_hex(4)}"


def _prefix(step: int) -> str:
    return f"step-{step:08d}-"


def _write_report(folder: Store, pending: Pending) -> None:
    with folder.write(REPORT) as file:
        file.write(json.dumps(asdict(pending)).encode())


def read_pending(store: Store, name: str) -> Pending:
    """What was left in a folder of that name.

    Raises:
        StorageFailed: it cannot be read.
    """
    with storage_failures(f"{store.url}/{name}", "cannot be read"):
        said = json.loads(store.read_bytes(f"{name}/{REPORT}"))
    return Pending(**said | {"ood_domains": tuple(said["ood_domains"])})


def left_pending(store: Store) -> list[Pending]:
    """What an earlier process left, in the order of steps; what a kill left is removed.

    To be asked while nobody writes there.

    Raises:
        StorageFailed: it cannot be read.
    """
    found = []
    with storage_failures(store.url, "cannot be read"):
        folders = [i.base_name for i in store.list() if i.type == fs.FileType.Directory]
        for name in folders:
            if store.exists(f"{name}/{REPORT}"):
                found.append(read_pending(store, name))
            else:
                remove_pending(store, name)
    return sorted(found, key=lambda pending: pending.step)


def remove_all_pending(store: Store, step: int, but: Container[str]) -> None:
    """Remove all folders of a step, whole or not, but those of some names.

    Raises:
        StorageFailed: they cannot be removed.
    """
    with storage_failures(store.url, "cannot be read"):
        names = [info.base_name for info in store.list()]
    for name in names:
        if name.startswith(_prefix(step)) and name not in but:
            remove_pending(store, name)


def remove_pending(store: Store, name: str) -> None:
    """Remove the folder of a report that is written down, or that nobody waits for.

    Raises:
        StorageFailed: it cannot be removed.
    """
    folder = store.at(name)
    with storage_failures(folder.url, "cannot be removed"), suppress(FileNotFoundError):
        if folder.exists(REPORT):  # first: without it, nobody takes what is left for whole
            folder.filesystem.delete_file(folder.full(REPORT))
        folder.filesystem.delete_dir(folder.full())
