"""Checks images and writes them as Parquet: `<destination>/<domain>/<split>/part-*.parquet`.

A domain's folder has a record, `preparation.json`. Until its status is `done`, nothing reads the
domain, and the same preparation begins it again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import Progress

from trainers.config_model import Frozen
from trainers.data.folders import SPLITS, Found, Split
from trainers.data.images import BadImage, encode, num_pixels
from trainers.data.roots import DUPLICATES, PREPARATION_FILE, domain_files, read_record, remarks
from trainers.data.schema import LabelledImage, open_parquet, write_images
from trainers.data.sources import GENERAL, Source, carve, open_domain
from trainers.data.store import Store
from trainers.data.suite import is_domain_name
from trainers.errors import DENIED, WRONG_PATH, ConfigError, first_line
from trainers.folders import waiting_lock

BAD = "bad.csv"
FORMAT = 3
"""Of the record. Records of 0.2 have none: their splits may be others."""

_ROWS, _BYTES = 4096, 1 << 28  # of a Parquet file, whichever is reached first
_LARGEST = 1 << 29  # bytes of an image file: as many pixels as Pillow opens, 16 bits a colour
_BATCH = 64  # images in memory beside those of the file
_PIXELS = 10**8  # of images that are decoded at the same time, with up to 15 bytes each


class Options(Frozen):
    """What is done to all images."""

    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of train, or of test if there is no train, that becomes val if there is no val."""
    test_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of train that becomes test if there is no test. Default: 0.2 for data of one's own."""
    seed: int = Field(default=0, ge=0)
    """Chooses the images that become val and test."""
    resize: int | None = Field(default=None, ge=1)
    """Pixels of the short side. Smaller images keep their size."""
    drop_duplicates: bool = False
    """Leave an image out of val and test that has the same bytes as one in a split written before:
    train is written before val before test, the ID domain before the others."""

    @model_validator(mode="after")
    def _leave_train_images(self) -> Options:
        if self.val_fraction + (self.test_fraction or 0) >= 1:
            raise ValueError("val_fraction and test_fraction leave no image to train on")
        return self


@dataclass
class DomainReport:
    """A domain that is on disk."""

    domain: str
    status: Literal["done", "kept"]
    images: dict[str, int] = field(default_factory=dict)
    """By split."""
    left_out: int = 0
    """Bad images, and other files and splits that were not taken; all are listed in `bad.csv`."""


@dataclass(frozen=True)
class Report:
    """A preparation."""

    destination: str
    domains: tuple[DomainReport, ...]
    remarks: Sequence[str]
    """See `trainers.data.roots`."""
    id_domain: str | None


def prepare(
    sources: Mapping[str, Source],
    destination: Store,
    options: Options,
    *,
    id_domain: str | None = None,
    console: Console | None = None,
) -> Report:
    """Write domains; those that are there already with the same images and options are kept.

    Another preparation there is waited for.

    Args:
        sources: by domain, the ID domain first.
        id_domain: the domain to fine-tune on; the train images of the others become val and test.
            Without it, each domain keeps a train split.
        console: for a bar of progress, if it is a terminal.
    """
    is_shown = console is not None and console.is_terminal
    with Progress(console=console, disable=not is_shown) as bar:
        progress = partial(bar.update, bar.add_task("listing images", total=None))
        plans = _plans(sources, options, id_domain)
        with _alone_in(destination, sources.values()):
            others = []
            for info in destination.list():
                if not info.is_file and info.base_name not in plans:
                    record = read_record(destination.at(info.base_name)) or {}
                    if record.get("status") == "done":
                        others.append(info.base_name)
            records, kept = dict[str, dict[str, Any]](), dict[str, DomainReport | None]()
            for domain, splits in plans.items():
                records[domain] = _record(sources[domain], splits, options)
                kept[domain] = _kept(destination.at(domain), domain, records[domain])
            known = dict[bytes, str]()
            if options.drop_duplicates:
                there = [*others, *(domain for domain in plans if kept[domain])]
                for place, table in _all_digests(destination, there).items():
                    known |= dict.fromkeys(table["digest"].to_pylist(), place)
            reports = []
            for domain, splits in plans.items():  # none of which was refused
                report = kept[domain]
                if report is None:
                    at, record = destination.at(domain), records[domain]
                    report = _written(at, domain, splits, record, options, known, progress)
                reports.append(report)
            if not all(kept.values()):
                find_duplicates(destination, [*plans, *others])
    parts = [(domain, split) for domain in (*plans, *others) for split in SPLITS]
    return Report(destination.url, tuple(reports), remarks(destination, parts), id_domain)


@contextmanager
def _alone_in(destination: Store, sources: Iterable[Source]) -> Iterator[None]:
    """Within the block, no other preparation on this machine writes there."""
    if not destination.is_local:
        yield
        return
    folder = destination.local_path()
    for source in sources:
        if folder.resolve().is_relative_to(source.folder.resolve()):
            problem = "it would lie among the images of the source"
            raise ConfigError(problem, key="DESTINATION", value=destination.url)
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / ".prepare.lock", f"preparing images in {destination.url}"):
        yield


def _plans(
    sources: Mapping[str, Source], options: Options, id_domain: str | None
) -> dict[str, dict[Split, Found]]:
    """The images of each domain by the split that they will have."""
    plans = dict[str, dict[Split, Found]]()
    class_names = None
    for domain, source in sources.items():
        if domain.startswith(".") or not is_domain_name(domain):
            raise ConfigError("must be the name of a folder", key="--domain", value=domain)
        splits = open_domain(source, domain, class_names)
        if domain == id_domain and source.layout == "folders":
            class_names = next(iter(splits.values())).class_names
        test = options.test_fraction
        if test is None:
            test = 0.2 if source.layout in GENERAL else 0.0
        is_ood = id_domain is not None and domain != id_domain
        plans[domain] = carve(
            splits, val=options.val_fraction, test=test, seed=options.seed, is_ood=is_ood
        )
    return plans


def _record(source: Source, splits: Mapping[Split, Found], options: Options) -> dict[str, Any]:
    """What the files of a domain are made of."""
    names = hashlib.sha256()
    for split, found in splits.items():
        labels = zip(found.rows["name"][:], found.rows["label"][:], strict=True)
        names.update(json.dumps([split, found.class_names, list(labels)]).encode())
    return {
        "format": FORMAT,
        "source": source.absolute().model_dump(mode="json"),
        "settings": options.model_dump(),
        "images_sha256": names.hexdigest(),
    }


def _kept(folder: Store, domain: str, record: Mapping[str, Any]) -> DomainReport | None:
    """The domain, if it is there already and has this record; None if it is to be written."""
    before = read_record(folder)
    problem = None
    if before is None:
        if any(info.is_file for info in folder.list(recursive=True)):  # they would be removed
            problem = "it has files that `prepare` did not make"
    elif before.get("format") != FORMAT:
        problem = "it was prepared by version 0.2; with other splits, its test images would train"
    elif before.get("status") == "done":
        if record.items() <= before.items():
            return DomainReport(domain, "kept", before["images"], before["left_out"])
        problem = "it was prepared from other images or with other options"
    if problem:
        hint = "choose another destination, or remove the folder"
        raise ConfigError(problem, hint=hint, source=folder.url)
    return None


def _written(
    folder: Store,
    domain: str,
    splits: Mapping[Split, Found],
    record: Mapping[str, Any],
    options: Options,
    known: dict[bytes, str],
    progress: Callable[..., None],
) -> DomainReport:
    if folder.exists():
        folder.filesystem.delete_dir(folder.full())
    _write_record(folder, {**record, "status": "unfinished"})
    report = DomainReport(domain, "done")
    listed = []
    for split in (split for split in SPLITS if split in splits):
        found = splits[split]
        bad = list[tuple[str, str]]()
        show = partial(progress, description=f"{domain}/{split}", total=len(found.rows))
        images = _encoded(found, options.resize, bad, show)
        if options.drop_duplicates:
            images = _new(images, domain, split, known, bad)
        report.images[split] = 0
        for number, of_file in enumerate(_files(images)):
            with folder.write(f"{split}/part-{number:05d}.parquet") as file:
                write_images(file, of_file, found.class_names)
            report.images[split] += len(of_file)
        listed += [(split, *why) for why in (*found.left_out, *bad)]
    report.left_out = len(listed)
    if listed:
        _write_csv(folder, BAD, ("split", "path", "reason"), listed)
    _write_record(folder, {**record, **asdict(report)})
    return report


def _files(images: Iterable[LabelledImage]) -> Iterator[list[LabelledImage]]:
    """The images of one Parquet file after the other."""
    of_file: list[LabelledImage] = []
    size = 0
    for image in images:
        of_file.append(image)
        size += len(image.image)
        if len(of_file) == _ROWS or size >= _BYTES:
            yield of_file
            of_file = []
            size = 0
    if of_file:
        yield of_file


def _write_record(folder: Store, values: Mapping[str, Any]) -> None:
    with folder.write(PREPARATION_FILE) as file:
        file.write(f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode())


def _write_csv(folder: Store, name: str, header: Sequence[str], rows: Iterable[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with folder.write(name) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _encoded(
    found: Found, resize: int | None, bad: list[tuple[str, str]], progress: Callable[..., None]
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
                file = os.path.normpath(Path(image["path"]).absolute())
                if found.within and not file.startswith(found.within):
                    return "not read: a file outside of the source"
                facts = Path(file).stat()
                if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for without end
                    return "cannot be read: not a file"
                if facts.st_size > _LARGEST:
                    return f"too large: {facts.st_size:,} bytes"
                data = Path(file).read_bytes()
            with room.of(num_pixels(data)):
                return encode(data, resize=resize)
        except BadImage as problem:
            return str(problem)
        except OSError as error:
            if error.errno not in WRONG_PATH | DENIED:  # a disk fails
                raise
            return f"cannot be read: {error.strerror}"
        except Exception as error:  # one row must not stop the others
            return f"cannot be read: {first_line(error)}"

    number = len(found.rows)
    room = _Room()
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        for start in range(0, number, _BATCH):
            rows = found.rows[start : start + _BATCH]
            results = pool.map(encoded, zip(rows["image"], rows["label"], strict=True))
            for result, label, name in zip(results, rows["label"], rows["name"], strict=True):
                if isinstance(result, str):
                    bad.append((name, result))
                else:
                    yield LabelledImage(result, name, label)
            progress(completed=min(start + _BATCH, number))


def _new(
    images: Iterable[LabelledImage],
    domain: str,
    split: Split,
    known: dict[bytes, str],
    bad: list[tuple[str, str]],
) -> Iterator[LabelledImage]:
    """The images without those of val and test that are `known`; these are added to `bad`.

    The others are known from then on.
    """
    own = dict[bytes, str]()
    for image in images:
        digest = _digest(image.image)
        if split != "train" and digest in known:
            bad.append((image.path, f"the same bytes are in {known[digest]}"))
        else:
            own[digest] = f"{domain}/{split}"
            yield image
    known |= own


class _Room:
    """Bounds the memory of threads that decode: `_PIXELS` at a time, or one image of more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._used = 0

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait until an image of so many pixels may be decoded, in the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= _PIXELS)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def find_duplicates(destination: Store, domains: Sequence[str]) -> None:
    """List images with the same bytes in two splits or domains in `duplicates.csv`.

    Nothing is removed: which of the two is wrong is for people to say, or for `drop_duplicates`.
    """
    digests = _all_digests(destination, domains)
    listed = list[tuple[str, ...]]()
    for (one, first), (other, second) in combinations(digests.items(), 2):
        shared = first.join(second, "digest", join_type="inner", right_suffix=" 2")
        names = (shared[column].to_pylist() for column in ("name_min", "name_min 2"))
        listed += [(one, other, *pair) for pair in sorted(zip(*names, strict=True))]
    if listed or destination.info(DUPLICATES).is_file:
        header = ("first", "second", "path in first", "path in second")
        _write_csv(destination, DUPLICATES, header, listed)


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _all_digests(destination: Store, domains: Sequence[str]) -> dict[str, pa.Table]:
    """By `domain/split`."""
    places = [f"{domain}/{split}" for domain in domains for split in SPLITS]
    return {place: _digests(destination, place) for place in places if destination.exists(place)}


def _digests(destination: Store, place: str) -> pa.Table:
    """Digests of the different images of a split, each with the first name; kept beside it."""
    domain, split = place.split("/")
    kept = f"{domain}/.{split}.digests"
    if destination.info(kept).is_file:
        with open_parquet(destination, kept) as parquet:
            return parquet.read()
    digests, names = list[bytes](), list[str]()
    for file in domain_files(destination, domain, split):
        with open_parquet(destination, file) as parquet:
            for batch in parquet.iter_batches(256, columns=["image"]):
                names += pc.struct_field(batch["image"], "path").to_pylist()
                images = pc.struct_field(batch["image"], "bytes")
                digests += [_digest(image.as_buffer()) for image in images]
    table = pa.table({"digest": digests, "name": names})
    different = table.group_by("digest").aggregate([("name", "min")])
    with destination.write(kept) as stream:
        pq.write_table(different, stream)
    return different
