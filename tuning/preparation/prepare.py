"""`prepare`: list, carve, lay out, make the shards through Ray, and say what was found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from rich.console import Console

from trainers.data.formats.index import Split
from trainers.data.shards import Shard, ShardReport, make_shard, up_to_date
from trainers.data.storage import Store
from tuning.execution.signals import interrupted_by_sigterm
from tuning.preparation.locking import alone, require_own, require_whole
from tuning.preparation.manifest import FINDINGS, Found, Status, write_findings, write_record
from tuning.preparation.options import PrepareOptions
from tuning.preparation.plan import DomainPlan, Plan, other_parts, plan_preparation
from tuning.preparation.progress import Display
from tuning.preparation.tasks import PreparationFailed, run_shards

_PACKAGES = ("lipsum-tune", "pillow", "pyarrow", "numpy")


@dataclass(frozen=True)
class SplitReport:
    """A split as it is on disk."""

    images: int
    bytes: int


@dataclass(frozen=True)
class DomainReport:
    """A domain with all its shards made."""

    domain: str
    url: str
    status: Status
    """`refused` where more images are bad than may be left out."""
    splits: dict[Split, SplitReport]
    findings: tuple[Found, ...]
    images: int
    """As listed, the bad ones included."""

    @property
    def bad(self) -> int:
        """How many images cannot be used."""
        return sum(found.finding.bad for found in self.findings)

    def kinds(self, *, bad: bool) -> dict[str, int]:
        """How many findings of each kind, the most frequent first."""
        of_kind = (f.finding.kind for f in self.findings if f.finding.bad == bad)
        return dict(Counter(of_kind).most_common())


@dataclass(frozen=True)
class PreparationReport:
    """What a preparation made."""

    destination: str
    domains: tuple[DomainReport, ...]
    made: int
    """Images that this run read; those of shards that were there already are not among them."""
    seconds: float
    """For those."""

    @property
    def refused(self) -> tuple[DomainReport, ...]:
        """The domains with more bad images than may be left out."""
        return tuple(domain for domain in self.domains if domain.status == "refused")


def prepare(
    layout: str,
    source: str,
    destination: str,
    options: PrepareOptions | None = None,
    *,
    address: str | None = None,
    progress: bool = True,
) -> PreparationReport:
    """Make a data set in the project's format out of images in any of the known layouts.

    Run again it goes on after an interruption, and makes anew whatever shard has images that have
    changed at the source since; all others stay as they are.

    Args:
        layout: a name of `trainers.data.formats.LAYOUTS`.
        source: folder or URL of the images.
        destination: folder or URL; it gets `<domain>/<split>/part-*.parquet`.
        options: what else there is to say.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        progress: show how it goes on, on standard error.

    Raises:
        ConfigError: before anything is written, for whatever can be known to fail.
        PreparationFailed: the source does not answer, the destination cannot be written to or is
            another's, or a worker was lost.
        KeyboardInterrupt: also for SIGTERM, by which clusters end a job.
    """
    options = options or PrepareOptions()
    plan = plan_preparation(layout, source, destination, options)
    return _carry_out(plan, options, address, Console(stderr=True, quiet=not progress))


def _carry_out(
    plan: Plan, options: PrepareOptions, address: str | None, console: Console
) -> PreparationReport:
    from tuning.execution.ray_session import (
        ray_session,  # torch with it: not before the plan stands
    )

    run = uuid4().hex
    runs = {domain.domain: (domain.record or {}).get("run") for domain in plan.domains}
    ended: dict[str, list[tuple[Shard, ShardReport]]] = {d.domain: [] for d in plan.domains}
    reports: list[DomainReport] = []
    stale: list[Shard] = []

    def begin(domain: DomainPlan) -> None:
        runs[domain.domain] = run
        write_record(domain.store, "unfinished", _facts(plan, domain, run))

    def on_end(shard: Shard, report: ShardReport) -> None:
        display.shard_ended(shard, report)
        ended[shard.domain].append((shard, report))
        domain = next(d for d in plan.domains if d.domain == shard.domain)
        if len(ended[shard.domain]) == len(domain.shards):
            is_locked = domain.domain in locked
            reports.append(
                _finish(plan, domain, ended[shard.domain], options, runs[shard.domain], is_locked)
            )

    def on_checked(shard: Shard, report: ShardReport | None) -> None:
        if report is None:
            stale.append(shard)
        else:
            on_end(shard, report)

    source, destination = _address(plan.source), _address(plan.destination)
    try:
        with ExitStack() as stack:
            locked = {d.domain for d in plan.domains if stack.enter_context(alone(d))}
            stack.enter_context(ray_session(address))
            stack.enter_context(interrupted_by_sigterm())
            display = stack.enter_context(Display(console, plan.images))
            for domain in plan.domains:
                if not domain.is_done:
                    begin(domain)
            began = time.monotonic()
            done = [shard for d in plan.domains if d.is_done for shard in d.shards]
            run_shards(source, destination, done, options.encode, up_to_date, on_checked)
            for domain in plan.domains:  # no reader is to take a half for the whole
                if any(shard.domain == domain.domain for shard in stale):
                    begin(domain)
            rest = [shard for d in plan.domains if not d.is_done for shard in d.shards]
            run_shards(source, destination, stale + rest, options.encode, make_shard, on_end)
            seconds = time.monotonic() - began
    except (OSError, PreparationFailed) as error:
        raise PreparationFailed(
            f"{' '.join(str(error).split())}; finished shards stay: "
            "run the same command again to go on"
        ) from error
    made = sum(len(s.examples) for pairs in ended.values() for s, r in pairs if not r.reused)
    in_order = {domain.domain: place for place, domain in enumerate(plan.domains)}
    reports.sort(key=lambda report: in_order[report.domain])
    return PreparationReport(plan.destination.url, tuple(reports), made, seconds)


def _finish(
    plan: Plan,
    domain: DomainPlan,
    ended: Sequence[tuple[Shard, ShardReport]],
    options: PrepareOptions,
    run: str | None,
    is_locked: bool,
) -> DomainReport:
    """Remove what was to be replaced, see that all is there, and close the record."""
    place = {shard.path: number for number, shard in enumerate(domain.shards)}
    in_order = sorted(ended, key=lambda pair: place[pair[0].path])
    findings = list(domain.findings)
    splits: dict[Split, SplitReport] = {}
    for shard, made in in_order:
        findings += [Found(shard.split, finding) for finding in made.findings]
        before = splits.get(shard.split, SplitReport(0, 0))
        splits[shard.split] = SplitReport(before.images + made.rows, before.bytes + made.bytes)
    bad = sum(found.finding.bad for found in findings)
    is_unchanged = domain.is_done and all(made.reused for _, made in in_order)
    is_right = is_unchanged or options.skip_bad.allows(bad, domain.images)
    status: Status = "done" if is_right else "refused"
    report = DomainReport(
        domain.domain, domain.store.url, status, splits, tuple(findings), domain.images
    )
    require_own(domain.store, run)
    others = other_parts(domain.store, domain.shards)
    _remove(domain.store, [path for path in others if path in domain.extra])
    if is_locked:
        _remove_unfinished(domain.store)
    require_whole(plan.destination, domain, in_order)
    write_findings(domain.store, findings)
    require_own(domain.store, run)
    write_record(domain.store, status, {**_facts(plan, domain, run), **_counts(report, options)})
    return report


def _facts(plan: Plan, domain: DomainPlan, run: str | None) -> dict[str, Any]:
    return {
        "run": run,
        **plan.facts,
        "settings": dict(domain.settings),
        "digest": domain.digest,
        "overwrite": domain.overwrite,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _counts(report: DomainReport, options: PrepareOptions) -> dict[str, Any]:
    findings = Counter((f.split, f.finding.kind) for f in report.findings)
    return {
        "skip_bad": str(options.skip_bad),
        "bad": report.bad,
        "splits": {
            split: {
                "images": made.images,
                "bytes": made.bytes,
                "findings": {kind: n for (of, kind), n in sorted(findings.items()) if of == split},
            }
            for split, made in report.splits.items()
        },
        "findings": FINDINGS,
    }


def _remove(store: Store, paths: Sequence[str]) -> None:
    for path in paths:
        store.filesystem.delete_file(store.full(path))


def _remove_unfinished(store: Store) -> None:
    """What a process that was killed could not take away itself."""
    there = [store.relative(info) for info in store.list(recursive=True) if info.is_file]
    _remove(store, [path for path in there if path.endswith(".unfinished")])


def _address(store: Store) -> str:
    """As a worker finds it, whose working directory is another."""
    return store.root if store.is_local else store.url
