"""`lipsum-tune prepare`: plan, make the shards as Ray tasks, check them and close the records."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any, TypeVar
from uuid import uuid4

from rich.console import Console

from trainers.data.encoding import EncodeOptions
from trainers.data.formats.index import Split
from trainers.data.formats.retry import SourceLost, require_source
from trainers.data.shards import Shard, ShardReport, make_shard, up_to_date
from trainers.data.storage import Store, open_store
from trainers.errors import StorageFailed
from tuning.execution.signals import environment_variables
from tuning.preparation.manifest import (
    FINDINGS,
    Found,
    PreparationFailed,
    Status,
    check_own,
    check_whole,
    locked,
    other_parts,
    write_findings,
    write_record,
)
from tuning.preparation.plan import DomainPlan, Plan, PrepareOptions, may_skip, plan_preparation
from tuning.preparation.report import Display, DomainReport, PreparationReport, SplitReport

_PACKAGES = ("lipsum-tune", "pillow", "pyarrow", "numpy")
_TASKS_PER_CPU = 2  # one runs, one waits
_STORAGE_VARIABLES = ("AWS_", "AZURE_", "GCS_", "GOOGLE_", "HF_", "STORAGE_")

Report = TypeVar("Report", ShardReport, ShardReport | None)
Make = Callable[[Store, Store, Shard, EncodeOptions], Report]


def prepare(
    layout: str,
    source: str,
    destination: str,
    options: PrepareOptions | None = None,
    *,
    address: str | None = None,
    progress: bool = True,
) -> PreparationReport:
    """Make a data set in the project's format out of images in one of the known layouts.

    If it is run again, it continues after an interruption, and makes those shards anew whose images
    have changed at the source since.

    Args:
        layout: a name of `trainers.data.formats.LAYOUTS`.
        destination: folder or URL; it gets `<domain>/<split>/part-*.parquet`.
        address: of a Ray cluster; by default `RAY_ADDRESS`, or a new local one.

    Raises:
        ConfigError: before anything is written, for everything that can be checked by then.
        PreparationFailed: the source does not answer, the destination cannot be written to or is
            in use, or a worker was lost.
        KeyboardInterrupt: also for SIGTERM, with which clusters end a job.
    """
    options = options or PrepareOptions()
    plan = plan_preparation(layout, source, destination, options)
    console = Console(stderr=True, quiet=not progress)
    count = f"{plan.images:,} images of {', '.join(domain.domain for domain in plan.domains)}"
    console.print(f"{count}; starting Ray", soft_wrap=True, highlight=False, markup=False)
    # Imports torch, which takes seconds: not before the plan is known to be good.
    from tuning.execution.ray_session import ray_session
    from tuning.execution.ray_watch import watched_ray

    run = uuid4().hex
    runs = {domain.domain: (domain.record or {}).get("run") for domain in plan.domains}
    by_name = {domain.domain: domain for domain in plan.domains}
    ended: dict[str, list[tuple[Shard, ShardReport]]] = defaultdict(list)
    reports: dict[str, DomainReport] = {}
    stale: list[Shard] = []

    def begin(domain: DomainPlan) -> None:
        runs[domain.domain] = run
        write_record(domain.store, "unfinished", _facts(plan, domain, run))

    def on_end(shard: Shard, report: ShardReport) -> None:
        display.shard_ended(shard, report)
        ended[shard.domain].append((shard, report))
        domain = by_name[shard.domain]
        if len(ended[shard.domain]) == len(domain.shards):
            reports[shard.domain] = _finish(
                plan, domain, ended[shard.domain], options, runs[shard.domain],
                is_locked=domain.domain in exclusive,
            )  # fmt: skip

    def on_checked(shard: Shard, report: ShardReport | None) -> None:
        if report is None:
            stale.append(shard)
        else:
            on_end(shard, report)

    try:
        with ExitStack() as stack:
            exclusive = {
                domain.domain
                for domain in plan.domains
                if stack.enter_context(locked(domain.store, domain.record))
            }
            stack.enter_context(ray_session(address))
            stack.enter_context(watched_ray())
            display = stack.enter_context(Display(console, plan.images))
            for domain in plan.domains:
                if not domain.is_done:
                    begin(domain)
            began = time.monotonic()
            done = [shard for d in plan.domains if d.is_done for shard in d.shards]
            run_shards(plan, done, options.encode, up_to_date, on_checked)
            # Domains of which a shard has to be made anew are unfinished from here on, so that no
            # reader takes a part for the whole.
            for domain in plan.domains:
                if any(shard.domain == domain.domain for shard in stale):
                    begin(domain)
            rest = [shard for d in plan.domains if not d.is_done for shard in d.shards]
            run_shards(plan, stale + rest, options.encode, make_shard, on_end)
            seconds = time.monotonic() - began
    except (OSError, PreparationFailed, StorageFailed) as error:
        raise PreparationFailed(
            f"{' '.join(str(error).split())}; finished shards stay: run the same command again to "
            "continue"
        ) from error
    made = sum(len(s.examples) for pairs in ended.values() for s, r in pairs if not r.reused)
    in_order = tuple(reports[domain.domain] for domain in plan.domains)
    return PreparationReport(plan.destination.url, in_order, made, seconds, plan.id_domain)


def _finish(
    plan: Plan,
    domain: DomainPlan,
    ended: Sequence[tuple[Shard, ShardReport]],
    options: PrepareOptions,
    run: str | None,
    *,
    is_locked: bool,
) -> DomainReport:
    """Remove the files to be replaced, check that all shards are there, and close the record."""
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
    is_allowed = is_unchanged or may_skip(options.skip_bad, bad, domain.images)
    status: Status = "done" if is_allowed else "refused"

    store = domain.store
    check_own(store, run)
    to_remove = [path for path in other_parts(store, domain.shards) if path in domain.extra]
    if is_locked:  # files of writers that were killed
        to_remove += [path for path in store.files() if path.endswith(".unfinished")]
    for path in to_remove:
        store.filesystem.delete_file(store.full(path))
    check_whole(plan.destination, store, in_order)
    write_findings(store, findings)
    check_own(store, run)
    kinds = Counter((found.split, found.finding.kind) for found in findings)
    counts = {
        "skip_bad": options.skip_bad,
        "bad": bad,
        "splits": {
            split: {
                "images": made.images,
                "bytes": made.bytes,
                "findings": {kind: n for (of, kind), n in sorted(kinds.items()) if of == split},
            }
            for split, made in splits.items()
        },
        "findings": FINDINGS,
    }
    write_record(store, status, {**_facts(plan, domain, run), **counts})
    return DomainReport(domain.domain, store.url, status, splits, tuple(findings), domain.images)


def _facts(plan: Plan, domain: DomainPlan, run: str | None) -> dict[str, Any]:
    """The part of a record that is known from the start."""
    return {
        "run": run,
        "layout": plan.layout,
        "source": plan.source.url,
        "settings": dict(domain.settings),
        "digest": domain.digest,
        "overwrite": domain.overwrite,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def run_shards(
    plan: Plan,
    shards: Sequence[Shard],
    options: EncodeOptions,
    make: Make[Report],
    on_end: Callable[[Shard, Report], None],
) -> None:
    """Make or check shards as Ray tasks of one CPU each, in order.

    Raises:
        PreparationFailed: at the first shard that fails.
    """
    import ray

    from tuning.execution.tasks import run_tasks
    from tuning.runs.errors import in_one_line, root_cause

    # A worker has another working directory, so local paths are absolute. Keys for storage go as an
    # argument, since Ray writes runtime environments to its logs and shows them in its dashboard.
    source, destination = (
        store.root if store.is_local else store.url for store in (plan.source, plan.destination)
    )
    keys = {k: value for k, value in os.environ.items() if k.startswith(_STORAGE_VARIABLES)}
    fixed = ray.put((source, destination, options, keys, make))
    task: Any = ray.remote(num_cpus=1)(run_shard)

    def get(shard: Shard, reference: Any) -> None:
        try:
            report = ray.get(reference)
        except SourceLost as error:
            raise PreparationFailed(str(root_cause(error))) from error
        except Exception as error:
            raise PreparationFailed(f"{shard.path}: {in_one_line(error)}") from error
        on_end(shard, report)

    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    run_tasks(shards, lambda s: task.remote(fixed, s), get, at_once=_TASKS_PER_CPU * cpus)


def run_shard(
    fixed: tuple[str, str, EncodeOptions, Mapping[str, str], Make[Report]], shard: Shard
) -> Report:
    """Make or check one shard, in a worker.

    Raises:
        SourceLost: the source is not there on this machine.
    """
    source, destination, options, keys, make = fixed
    with environment_variables(keys, override=False):
        origin = open_store(source)
        require_source(origin)
        return make(origin, open_store(destination), shard, options)
