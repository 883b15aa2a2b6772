"""What a preparation will make, and every reason not to begin it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyarrow import ArrowInvalid

from trainers.data.formats import find_layout
from trainers.data.formats.index import Index
from trainers.data.shards import Shard, plan_shards
from trainers.data.splits import carve_validation
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, first_line
from tuning.preparation.manifest import Found, read_record
from tuning.preparation.options import PrepareOptions

_PART = re.compile(r"(train|val|test)/part-\d{5}\.parquet")


@dataclass(frozen=True)
class DomainPlan:
    """One domain: its files to be, and what its listing found."""

    store: Store
    """The domain's own folder."""
    domain: str
    shards: tuple[Shard, ...]
    findings: tuple[Found, ...]
    settings: Mapping[str, Any]
    """What was asked for, by the names of the options."""
    overwrite: bool
    """Whether `--overwrite` was said, now or before an interruption."""
    extra: tuple[str, ...]
    """Parquet files in its folder that are to go."""
    record: Mapping[str, Any] | None
    """Of an earlier preparation."""
    is_done: bool
    """Whether the very same has been prepared before."""

    @property
    def digest(self) -> str:
        """Over all that its files are made of."""
        return _digest(self.shards)

    @property
    def images(self) -> int:
        """How many are listed, those that cannot be read included."""
        listed = sum(len(shard.examples) for shard in self.shards)
        return listed + sum(found.finding.bad for found in self.findings)


@dataclass(frozen=True)
class Plan:
    """A whole preparation."""

    layout: str
    source: Store
    destination: Store
    domains: tuple[DomainPlan, ...]

    @property
    def facts(self) -> dict[str, str]:
        """What a record says of where its images are from."""
        return {"layout": self.layout, "source": self.source.url}

    @property
    def images(self) -> int:
        """How many are to be read."""
        return sum(len(s.examples) for domain in self.domains for s in domain.shards)


def plan_preparation(layout: str, source: str, destination: str, options: PrepareOptions) -> Plan:
    """List the source, carve validation splits, and lay out the files.

    Raises:
        ConfigError: whatever can be known to fail, or would replace what somebody may want to
            keep.
    """
    options.check()
    chosen = find_layout(layout)
    try:
        origin, target = open_store(source), open_store(destination)
        if not origin.exists():
            raise ConfigError(f"{source}: no such folder")
        for store in (origin, target):
            if store.info().is_file:
                raise ConfigError(f"{store.url}: a file, where a folder is expected")
        _keep_apart(origin, target)
        listings = carve_validation(
            chosen.read(origin, options.layout), options.val_fraction, options.seed
        )
        if not any(listing.examples for listing in listings):
            raise ConfigError(f"{source}: no images in the layout `{layout}`")
        names = list(dict.fromkeys(listing.domain for listing in listings))
        for name in names:
            if name.startswith(".") or "/" in name or not name:
                raise ConfigError(f"--domain {name!r}: a folder's name is expected")
            _keep_apart(origin, target.at(name))
            _keep_apart(target.at(name), origin)
        plan = Plan(layout, origin, target, ())
        domains = tuple(
            _plan_domain(plan, name, [li for li in listings if li.domain == name], options)
            for name in names
        )
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: the name {error.object!r} is not UTF-8; rename it") from None
    except OSError as error:  # no permission, no connection, no such bucket
        raise ConfigError(f"{source} to {destination}: {' '.join(str(error).split())}") from error
    except ArrowInvalid as error:  # a path that its file system does not understand
        raise ConfigError(f"{source} to {destination}: {first_line(error)}") from error
    return replace(plan, domains=domains)


def _plan_domain(
    plan: Plan, name: str, listings: Sequence[Index], options: PrepareOptions
) -> DomainPlan:
    shards = tuple(
        shard
        for listing in listings
        for shard in plan_shards(listing, options.encode, options.shard_size)
    )
    if not shards:
        raise ConfigError(f"{name}: no images of this domain are left")
    findings = tuple(Found(li.split, finding) for li in listings for finding in li.findings)
    settings = _settings(listings[0].class_names, options)
    store = plan.destination.at(name)
    record = read_record(store)
    status = record.get("status") if record else None
    is_same = record is not None and record.get("digest") == _digest(shards)
    goes_on = status in ("unfinished", "refused") and all(
        record and record.get(key) == value
        for key, value in {**plan.facts, "settings": settings}.items()
    )
    overwrite = options.overwrite or bool(
        is_same and status == "unfinished" and record and record.get("overwrite")
    )
    extra = other_parts(store, shards)
    if not overwrite:
        kept = [path for path in extra if not (goes_on and _PART.fullmatch(path))]
        _keep_what_is_there(store, shards, record, settings, kept, goes_on=goes_on)
    is_done = is_same and status == "done"
    return DomainPlan(
        store, name, shards, findings, settings, overwrite, tuple(extra), record, is_done
    )


def _settings(class_names: Sequence[str], options: PrepareOptions) -> dict[str, Any]:
    names = {
        "domains": list(options.layout.domains),
        **{key: value for key, value in asdict(options.layout).items() if key != "domains"},
        **asdict(options.encode),
        "val_fraction": options.val_fraction,
        "seed": options.seed,
        "shard_size": options.shard_size,
    }
    settings = {f"--{key.replace('_', '-')}": value for key, value in names.items()}
    return {
        **settings,
        "class_names_sha256": hashlib.sha256("\n".join(class_names).encode()).hexdigest(),
    }


def _digest(shards: Sequence[Shard]) -> str:
    return hashlib.sha256(
        "".join(shard.path + shard.digest for shard in shards).encode()
    ).hexdigest()


def other_parts(store: Store, shards: Sequence[Shard]) -> list[str]:
    """The Parquet files in a domain's folder that are not among those to be."""
    planned = {shard.path.partition("/")[2] for shard in shards}
    there = (store.relative(info) for info in store.list(recursive=True) if info.is_file)
    return [path for path in there if path.endswith(".parquet") and path not in planned]


def _keep_what_is_there(
    store: Store,
    shards: Sequence[Shard],
    record: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    others: Sequence[str],
    *,
    goes_on: bool,
) -> None:
    """Refuse to replace another preparation, or files that nobody prepared.

    One that was interrupted or refused may go on with the images that are there now.
    """
    way_out = "--overwrite replaces it"
    if record is None:
        if any(info.path.endswith(".parquet") for info in store.list(recursive=True)):
            raise ConfigError(
                f"{store.url}: holds Parquet files that `prepare` did not make; {way_out}"
            )
        return
    if not goes_on and record.get("digest") != _digest(shards):
        before, names = record.get("settings", {}), "class_names_sha256"
        differing = [
            f"{key} {_said(before.get(key))}, now {_said(settings.get(key))}"
            for key in {**settings, **before}
            if key != names and settings.get(key) != before.get(key)
        ]
        if not differing:
            names_differ = before.get(names) != settings[names]
            differing = ["other class names" if names_differ else "other images at the source"]
        raise ConfigError(
            f"{store.url}: prepared before with other settings ({'; '.join(differing)}); {way_out}"
        )
    if others:
        raise ConfigError(f"{store.url}/{others[0]}: not part of this preparation; {way_out}")


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _keep_apart(outer: Store, inner: Store) -> None:
    """Refuse to write into the source, or to have the source in a folder that is written."""
    if outer.filesystem.type_name != inner.filesystem.type_name:
        return
    around, within = _resolved(outer), _resolved(inner)
    if within == around or within.startswith(f"{around}/"):
        raise ConfigError(
            f"{inner.url}: lies in {outer.url}; keep the source and what is made of it apart"
        )


def _resolved(store: Store) -> str:
    return os.path.realpath(store.root) if store.is_local else store.root
