"""What a preparation will make, and every reason not to start it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pyarrow import ArrowInvalid

from trainers.data.data_root import read_record
from trainers.data.encoding import EncodeOptions
from trainers.data.formats import LAYOUTS
from trainers.data.formats.index import Index, LayoutOptions
from trainers.data.shards import Shard, plan_shards
from trainers.data.splits import carve_splits
from trainers.data.storage import Store, open_store
from trainers.data.suite import is_domain_name
from trainers.errors import ConfigError, did_you_mean, first_line
from tuning.preparation.manifest import PART, Found, other_parts


def may_skip(limit: str, bad: int, images: int) -> bool:
    """Whether so many bad images are within `--skip-bad`: `20` of them, or `0.1%` of all images.

    Raises:
        ConfigError: the limit is neither.
    """
    found = re.fullmatch(r"(\d{1,18})|(\d+(?:\.\d+)?)\s*%", limit.strip(), re.ASCII)
    if found is None or (found[2] and float(found[2]) > 100):
        problem = "must be a number of images, or a share such as 0.1%"
        raise ConfigError(problem, key="--skip-bad", value=limit)
    return bad <= int(found[1]) if found[1] else 100 * bad <= float(found[2]) * images


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare` except the layout, the source and the destination."""

    layout: LayoutOptions = field(default_factory=LayoutOptions)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    val_fraction: float = 0.1
    """Share of the official train split, or of test if there is no train, that becomes val."""
    test_fraction: float | None = None
    """Share of train that becomes test if there is no test split. By default that of the layout."""
    seed: int = 0
    """Chooses the images that become val and test."""
    skip_bad: str = "0"
    """Number or share of a domain's images that may be left out because they are bad."""
    shard_size: int = 4096
    """Images in a Parquet file."""
    overwrite: bool = False
    """Whether a domain that was prepared with other settings may be replaced."""

    def check(self) -> None:
        """Raise a ConfigError for a number out of range."""
        may_skip(self.skip_bad, 0, 0)
        resize = self.encode.resize
        test, val = self.test_fraction or 0.0, self.val_fraction
        limits = {
            "--val-fraction": (val, 0 <= val < 1, "0 or more, below 1"),
            "--test-fraction": (test, 0 <= test < 1 - val, "0 or more, below 1 - --val-fraction"),
            "--resize": (resize, resize is None or resize > 0, "at least 1 pixel"),
            "--quality": (self.encode.quality, 1 <= self.encode.quality <= 100, "1 to 100"),
            "--shard-size": (self.shard_size, self.shard_size > 0, "at least 1 image"),
        }
        for option, (value, is_valid, range_) in limits.items():
            if not is_valid:
                raise ConfigError(f"must be {range_}", key=option, value=value)


@dataclass(frozen=True)
class DomainPlan:
    """Files to be made for one domain, and findings of its index."""

    store: Store
    """The domain's own folder."""
    domain: str
    shards: tuple[Shard, ...]
    findings: tuple[Found, ...]
    settings: Mapping[str, Any]
    """Options that define the data, by their names on the command line."""
    digest: str
    """Of everything that the files are made of, except the images' bytes."""
    overwrite: bool
    """Whether `--overwrite` was given, now or before an interruption."""
    extra: tuple[str, ...]
    """Parquet files in its folder that will be removed."""
    record: Mapping[str, Any] | None
    """Of an earlier preparation."""
    is_done: bool
    """Whether the same data have been prepared before."""

    @property
    def images(self) -> int:
        """Number of images in the index, unusable ones included."""
        usable = sum(len(shard.examples) for shard in self.shards)
        return usable + sum(found.finding.bad for found in self.findings)


@dataclass(frozen=True)
class Plan:
    """A whole preparation."""

    layout: str
    source: Store
    destination: Store
    domains: tuple[DomainPlan, ...]
    id_domain: str | None
    """The domain to fine-tune on, if `--id` names it."""

    @property
    def images(self) -> int:
        """Number of images to read."""
        return sum(len(s.examples) for domain in self.domains for s in domain.shards)


def plan_preparation(layout: str, source: str, destination: str, options: PrepareOptions) -> Plan:
    """Index the source, carve missing splits, and lay out the files. Nothing is written.

    Raises:
        ConfigError: the preparation would fail, or would replace files that are not its own.
    """
    options.check()
    if layout not in LAYOUTS:
        problem = f"no such layout{did_you_mean(layout, LAYOUTS)}"
        raise ConfigError(problem, key="layout", value=layout)
    try:
        origin, target = open_store(source), open_store(destination)
        if not origin.exists():
            raise ConfigError("no such folder", source=source)
        for store in (origin, target):
            if store.info().is_file:
                raise ConfigError("a file, where a folder is expected", source=store.url)
        _keep_apart(origin, target)
        test_fraction = options.test_fraction
        if test_fraction is None:
            test_fraction = LAYOUTS[layout].test_fraction
            options = replace(options, test_fraction=test_fraction)
        found, id_domain = LAYOUTS[layout].read(origin, options.layout), options.layout.id
        indexes = carve_splits(
            found,
            options.val_fraction,
            options.seed,
            test_fraction=test_fraction,
            ood={index.domain for index in found if id_domain} - {id_domain},
        )
        if not any(index.examples for index in indexes):
            raise ConfigError(f"no images in the layout {layout}", source=source)
        names = list(dict.fromkeys(index.domain for index in indexes))
        for name in names:
            if name.startswith(".") or not is_domain_name(name):
                raise ConfigError("must be the name of a folder", key="--domain", value=name)
            _keep_apart(origin, target.at(name))
            _keep_apart(target.at(name), origin)
        facts = {"layout": layout, "source": origin.url}
        domains = tuple(
            _plan_domain(target, [x for x in indexes if x.domain == name], facts, options)
            for name in names
        )
    except UnicodeDecodeError as error:
        problem = f"the name {error.object!r} is not UTF-8; rename it"
        raise ConfigError(problem, source=source) from None
    except OSError as error:  # no permission, no connection, no such bucket
        raise ConfigError(
            " ".join(str(error).split()), source=f"{source} to {destination}"
        ) from error
    except ArrowInvalid as error:  # a path that its file system does not understand
        raise ConfigError(first_line(error), source=f"{source} to {destination}") from error
    return Plan(layout, origin, target, domains, id_domain)


def _plan_domain(
    destination: Store, indexes: Sequence[Index], facts: Mapping[str, str], options: PrepareOptions
) -> DomainPlan:
    """Lay out one domain, after a check that its folder may be written to.

    Neither another preparation nor files that `prepare` did not make may be replaced. One that was
    interrupted or refused may go on with the images that are there now.
    """
    name = indexes[0].domain
    shards = tuple(
        shard
        for index in indexes
        for shard in plan_shards(index, options.encode, options.shard_size)
    )
    if not shards:
        raise ConfigError(f"no images of the domain {name} are left")
    findings = tuple(Found(index.split, f) for index in indexes for f in index.findings)
    digest = hashlib.sha256("".join(s.path + s.digest for s in shards).encode()).hexdigest()
    values = json.loads(json.dumps(asdict(options)))  # as the record has it: lists, no tuples
    values = {**values.pop("layout"), **values.pop("encode"), **values}
    settings = {
        f"--{key.replace('_', '-')}": value
        for key, value in values.items()
        if key not in ("skip_bad", "overwrite")
    }
    classes = "\n".join(indexes[0].class_names)
    settings["class_names_sha256"] = hashlib.sha256(classes.encode()).hexdigest()

    store = destination.at(name)
    record = read_record(store)
    before = record or {}
    status, is_same = before.get("status"), before.get("digest") == digest
    goes_on = status in ("unfinished", "refused") and all(
        before.get(key) == value for key, value in {**facts, "settings": settings}.items()
    )
    # --overwrite of an interrupted run still holds.
    overwrite = options.overwrite or bool(
        is_same and status == "unfinished" and before.get("overwrite")
    )
    extra = other_parts(store, shards)
    if not overwrite:
        kept = [path for path in extra if not (goes_on and PART.fullmatch(path))]
        has_files = any(path.endswith(".parquet") for path in store.files())
        problem = None
        if record is None and has_files:
            problem = "holds Parquet files that `prepare` did not make"
        elif record is not None and not goes_on and not is_same:
            differing = _differing(before.get("settings", {}), settings)
            problem = f"was prepared with other settings: {differing}"
        elif record is not None and kept:
            problem = f"{kept[0]} is not part of this preparation"
        if problem:
            raise ConfigError(problem, hint="--overwrite replaces it", source=store.url)
    is_done = is_same and status == "done"
    return DomainPlan(
        store, name, shards, findings, settings, digest, overwrite, tuple(extra), record, is_done
    )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ from those of an earlier preparation."""

    def shown(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    names = "class_names_sha256"
    differing = [
        f"{key} {shown(before.get(key))}, now {shown(now.get(key))}"
        for key in {**now, **before}
        if key != names and now.get(key) != before.get(key)
    ]
    if differing:
        return "; ".join(differing)
    return "other class names" if before.get(names) != now[names] else "other images at the source"


def _keep_apart(outer: Store, inner: Store) -> None:
    """Refuse to write into the source, or to have the source in a folder that is written."""
    if outer.filesystem.type_name == inner.filesystem.type_name:
        around, within = (
            os.path.realpath(store.root) if store.is_local else store.root
            for store in (outer, inner)
        )
        if within == around or within.startswith(f"{around}/"):
            problem = f"lies in {outer.url}; keep the source and the prepared data apart"
            raise ConfigError(problem, source=inner.url)
