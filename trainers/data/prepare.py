"""Checks images and writes them as Parquet: `<destination>/<domain>/<split>/part-*.parquet`.

A domain's folder has a record, `preparation.json`. Until its status is `done`, nothing reads the
domain, and the same preparation begins it again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainers.data.data_root import PREPARATION_FILE, domain_files, read_record
from trainers.data.folders import SPLITS, Found, Split
from trainers.data.images import BadImage, encode
from trainers.data.schema import LabelledImage, arrow_schema, images_table, open_parquet
from trainers.data.sources import GENERAL, Source, carve, open_domain, with_common_classes
from trainers.data.storage import Store
from trainers.data.suite import is_domain_name
from trainers.errors import ConfigError

BAD = "bad.csv"
DUPLICATES = "duplicates.csv"
FORMAT = 3
"""Of the record. Records of 0.2 have none: their splits may be others."""

_ROWS, _BYTES = 4096, 1 << 28  # of a Parquet file, whichever is reached first
_BATCH = 64  # images in memory beside those of the file
_MAX_FILE = 1 << 30  # bytes

Status = Literal["done", "refused", "kept"]


@dataclass(frozen=True)
class Options:
    """What is done to all images."""

    val_fraction: float = 0.1
    """Share of train, or of test if there is no train, that becomes val if there is no val."""
    test_fraction: float | None = None
    """Share of train that becomes test if there is no test. Default: 0.2 for data of one's own."""
    seed: int = 0
    """Chooses the images that become val and test."""
    resize: int | None = None
    """Pixels of the short side. Smaller images keep their size."""
    quality: int = 95
    """Of the JPEGs that are written, 1 to 100."""
    skip_bad: str = "0"
    """Number or share of a domain's images that may be left out because they are bad."""

    def check(self) -> None:
        """Raise a ConfigError for a number out of range."""
        may_skip(self.skip_bad, 0, 0)
        test, val = self.test_fraction or 0.0, self.val_fraction
        limits = {
            "--val-fraction": (val, 0 <= val < 1, "0 or more, below 1"),
            "--test-fraction": (test, 0 <= test < 1 - val, "0 or more, below 1 - --val-fraction"),
            "--resize": (self.resize, (self.resize or 1) > 0, "at least 1 pixel"),
            "--quality": (self.quality, 1 <= self.quality <= 100, "1 to 100"),
        }
        for option, (value, is_valid, range_) in limits.items():
            if not is_valid:
                raise ConfigError(f"must be {range_}", key=option, value=value)


@dataclass
class DomainReport:
    """A domain that is on disk."""

    domain: str
    status: Status
    images: dict[str, int] = field(default_factory=dict)
    """By split."""
    bad: int = 0
    """Images that cannot be used, listed in `bad.csv`."""
    left_out: int = 0
    """Other files, folders and splits that were not taken, listed there as well."""


@dataclass(frozen=True)
class Report:
    """A preparation."""

    destination: str
    domains: tuple[DomainReport, ...]
    duplicates: Mapping[str, int]
    """Number of images with the same bytes in two splits or domains, by pair of splits."""
    id_domain: str | None


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


def prepare(
    sources: Mapping[str, Source],
    destination: Store,
    options: Options,
    *,
    id_domain: str | None = None,
    replace: bool = False,
    wait: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
    """Write domains; those that are there already with the same images and options are kept.

    Args:
        sources: by domain.
        id_domain: the domain to fine-tune on; the train images of the others become val and test.
            Without it, each domain keeps a train split.
        replace: begin a domain again that was made of other images.
        wait: for another preparation there, instead of refusing.
        progress: is called with a domain and split, its images so far, and all its images.

    Raises:
        ConfigError: a source cannot be read, or a domain's folder holds anything else.
    """
    options.check()
    _check_places(sources, destination)
    opened = {domain: open_domain(source, domain) for domain, source in sources.items()}
    own = {d: splits for d, splits in opened.items() if sources[d].layout == "folders"}
    opened |= with_common_classes(own, id_domain if id_domain in own else None)
    plans = {}
    for domain, splits in opened.items():
        test = 0.2 if sources[domain].layout in GENERAL else 0.0
        test = test if options.test_fraction is None else options.test_fraction
        is_ood = id_domain is not None and domain != id_domain
        plans[domain] = carve(
            splits, val=options.val_fraction, test=test, seed=options.seed, is_ood=is_ood
        )
    with _locked(destination, wait=wait):
        records = {}
        for domain, splits in plans.items():  # before anything is written
            records[domain] = _record(sources[domain], splits, options)
            _check_folder(destination.at(domain), records[domain], replace=replace)
        reports = [
            _prepare_domain(destination, domain, splits, records[domain], options, progress)
            for domain, splits in plans.items()
        ]
        usable = [report.domain for report in reports if report.status != "refused"]
        duplicates = find_duplicates(destination, usable)
    return Report(destination.url, tuple(reports), duplicates, id_domain)


def _check_places(sources: Mapping[str, Source], destination: Store) -> None:
    for domain in sources:
        if domain.startswith(".") or not is_domain_name(domain):
            raise ConfigError("must be the name of a folder", key="--domain", value=domain)
    if destination.is_local:
        target = destination.local_path().resolve()
        for source in sources.values():
            origin = Path(source.path).expanduser().resolve()
            if origin.is_dir() and (target.is_relative_to(origin) or origin.is_relative_to(target)):
                problem = f"one of {source.path} and {destination.url} is in the other"
                raise ConfigError(problem, hint="choose another destination")


@contextmanager
def _locked(destination: Store, *, wait: bool) -> Iterator[None]:
    """Keep other preparations of this machine out of a folder."""
    if not destination.is_local:
        yield
        return
    destination.local_path().mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(destination.local_path(".prepare.lock"), timeout=-1 if wait else 0):
            yield
    except filelock.Timeout:
        problem = "another `prepare` is running there"
        raise ConfigError(problem, source=destination.url) from None


def _record(source: Source, splits: Mapping[Split, Found], options: Options) -> dict[str, Any]:
    """What the files of a domain are made of."""
    names = hashlib.sha256()
    for split, found in splits.items():
        labels = zip(found.rows["name"][:], found.rows["label"][:], strict=True)
        names.update(json.dumps([split, found.class_names, list(labels)]).encode())
    settings = {k: v for k, v in asdict(options).items() if k != "skip_bad"}
    return {
        "format": FORMAT,
        "source": source.model_dump(mode="json"),
        "settings": settings,
        "images_sha256": names.hexdigest(),
    }


def _check_folder(folder: Store, record: Mapping[str, Any], *, replace: bool) -> None:
    """Raise a ConfigError if a domain's folder holds what must not be replaced."""
    before = read_record(folder)
    hint = "choose another destination, or remove the folder"
    if before is None:
        if folder.files():  # they would be removed
            problem = "it has files that `prepare` did not make"
            raise ConfigError(problem, hint=hint, source=folder.url)
    elif before.get("format") != FORMAT:
        problem = "it was prepared by version 0.2; with other splits, its test images would train"
        raise ConfigError(problem, hint=hint, source=folder.url)
    elif before.get("status") == "done" and not replace and not _is_same(before, record):
        problem = "it was prepared from other images or with other options"
        raise ConfigError(problem, hint=hint, source=folder.url)


def _is_same(before: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    return all(before.get(key) == value for key, value in record.items())


def _prepare_domain(
    destination: Store,
    domain: str,
    splits: Mapping[Split, Found],
    record: Mapping[str, Any],
    options: Options,
    progress: Callable[[str, int, int], None],
) -> DomainReport:
    folder = destination.at(domain)
    before = read_record(folder) or {}
    if _is_same(before, record) and before.get("status") in ("done", "refused"):
        counts = {key: before[key] for key in ("images", "bad", "left_out")}
        total = sum(before["images"].values()) + before["bad"]
        if may_skip(options.skip_bad, before["bad"], total):
            _write_record(folder, {**before, "status": "done"})
            return DomainReport(domain, "kept", **counts)
    if folder.exists():
        folder.filesystem.delete_dir(folder.full())
    _write_record(folder, {**record, "status": "unfinished"})
    report, listed = DomainReport(domain, "done"), []
    for split in (split for split in SPLITS if split in splits):
        found, bad = splits[split], list[tuple[str, str]]()
        schema = arrow_schema(found.class_names, found.metadata)
        images = _encoded(found, options, bad, partial(progress, f"{domain}/{split}"))
        waiting, size, part, report.images[split] = list[LabelledImage](), 0, 0, 0
        for image in chain(images, [None]):
            if waiting and (image is None or len(waiting) == _ROWS or size >= _BYTES):
                with folder.write(f"{split}/part-{part:05d}.parquet") as file:
                    pq.write_table(images_table(waiting, schema), file, row_group_size=512)
                waiting, size, part = [], 0, part + 1
            if image is not None:
                waiting.append(image)
                size += len(image.image)
                report.images[split] += 1
        report.bad += len(bad)
        report.left_out += len(found.left_out)
        listed += [(split, *why) for why in (*found.left_out, *bad)]
    if listed:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("split", "path", "reason"), *listed])
        with folder.write(BAD) as file:
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    if not may_skip(options.skip_bad, report.bad, sum(report.images.values()) + report.bad):
        report.status = "refused"
    facts = {k: v for k, v in asdict(report).items() if k != "domain"}
    _write_record(folder, {**record, **facts})
    return report


def _write_record(folder: Store, values: Mapping[str, Any]) -> None:
    with folder.write(PREPARATION_FILE) as file:
        file.write(f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode())


def _encoded(
    found: Found, options: Options, bad: list[tuple[str, str]], progress: Callable[[int, int], None]
) -> Iterator[LabelledImage]:
    """The images of a split as they are stored; those that cannot be are added to `bad`."""

    def encoded(row: tuple[dict[str, Any] | None, int]) -> bytes | str:
        image, label = row
        if label < 0:
            return "no label, or not one of the classes"
        if not image or (image["bytes"] is None and not image["path"]):
            return "no image"
        try:
            data = image["bytes"]
            if data is None:
                path = Path(image["path"])
                if path.stat().st_size > _MAX_FILE:
                    return f"too large: {path.stat().st_size:,} bytes"
                data = path.read_bytes()
            return encode(data, resize=options.resize, quality=options.quality, border=found.border)
        except BadImage as problem:
            return str(problem)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            return f"cannot be read: {error.strerror}"  # others are a disk's, and end it

    number = len(found.rows)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        for start in range(0, number, _BATCH):
            rows = found.rows[start : start + _BATCH]
            results = pool.map(encoded, zip(rows["image"], rows["label"], strict=True))
            for result, label, name in zip(results, rows["label"], rows["name"], strict=True):
                if isinstance(result, str):
                    bad.append((name, result))
                else:
                    yield LabelledImage(result, name, label)
            progress(min(start + _BATCH, number), number)


def find_duplicates(destination: Store, domains: list[str]) -> dict[str, int]:
    """Images with the same bytes in two splits or domains, listed in `duplicates.csv`.

    Nothing is removed: which of the two is wrong is for people to say.

    Returns:
        Number of images by pair of splits.
    """
    places = [
        (domain, split)
        for domain in domains
        for split in SPLITS
        if destination.exists(f"{domain}/{split}")
    ]
    of_place = []
    for domain, split in places:
        digests = []
        for file in domain_files(destination, domain, split):
            with open_parquet(destination, file) as parquet:
                for batch in parquet.iter_batches(256, columns=["image"]):
                    for image in pc.struct_field(batch["image"], "bytes"):
                        digest = hashlib.blake2b(image.as_buffer(), digest_size=8).digest()
                        digests.append(int.from_bytes(digest, "little"))
        of_place.append(np.array(digests, np.uint64))
    found, rows = dict[str, int](), list[tuple[str, ...]]()
    for one, other in combinations(range(len(places)), 2):
        shared = np.intersect1d(of_place[one], of_place[other])
        if len(shared):
            pair = ["/".join(places[one]), "/".join(places[other])]
            ours, theirs = (
                dict(zip(of_place[n].tolist(), _names(destination, *places[n]), strict=True))
                for n in (one, other)
            )
            rows += [(*pair, ours[value], theirs[value]) for value in shared.tolist()]
            found[" and ".join(pair)] = len(shared)
    if rows:
        text = io.StringIO()
        header = ("first", "second", "path in first", "path in second")
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        with destination.write(DUPLICATES) as file:
            file.write(text.getvalue().encode())
    return found


def _names(destination: Store, domain: str, split: str) -> list[str]:
    """Names of the images of a split, in order."""
    names: list[str] = []
    for file in domain_files(destination, domain, split):
        with open_parquet(destination, file) as parquet:
            image = parquet.read(columns=["image.path"])["image"]
            names += pc.struct_field(image, "path").to_pylist()
    return names
