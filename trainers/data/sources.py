"""Where labelled images come from: one domain of a folder, of Parquet, of the hub.

Everything is opened by the package `datasets`, which from version 5 on runs no script of a data
set; images are neither read nor decoded here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from trainers.config_model import Frozen
from trainers.data.folders import SPLIT_WORDS, Found, Split, read_folders
from trainers.data.published import IMAGENET, domainnet_domains, read_domainnet, read_imagenet
from trainers.data.store import cache_folder
from trainers.errors import ConfigError, first_line, listed

if TYPE_CHECKING:
    import datasets

Layout = Literal[
    "folders", "parquet", "hub", "domainnet", "imagenet", "imagenet-v2", "imagenet-r", "imagenet-a",
    "imagenet-sketch",
]  # fmt: skip
"""How images are stored; `lipsum-tune prepare --help` describes each."""

GENERAL = ("folders", "parquet", "hub")
"""Layouts of one's own data, of which a fifth becomes test if there is no test split."""


class Source(Frozen):
    """Where one domain comes from."""

    path: str
    """Folder, or the name of a data set on the Hugging Face hub."""
    layout: Layout = "folders"
    """How the images are stored there."""
    revision: str | None = None
    """Commit, branch or tag of a data set on the hub."""
    subset: str | None = None
    """Name of its configuration, if it has several."""
    domain_column: str | None = None
    """Column whose value is the name of the domain; other rows belong to other domains."""
    image_column: str | None = None
    """Column of the images. Default: `image`, or the only one of that kind."""
    label_column: str | None = None
    """Column of the labels. Default: `label`, or the only one of that kind."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of the labels, if the source does not have them."""
    splits: dict[str, Split] = Field(default_factory=dict)
    """From the source's splits to train, val and test. Default: by their usual names."""

    @field_validator("class_names")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and ("" in names or len({*names}) < max(len(names), 1)):
            raise ValueError("expected a different name for each class")
        return names

    @property
    def folder(self) -> Path:
        """The path on this machine; there may be none of a data set on the hub."""
        return Path(self.path).expanduser().absolute()

    def absolute(self) -> Source:
        """The same with an absolute path, unless it is the name of a data set on the hub."""
        if self.layout == "hub" and not self.folder.is_dir():
            return self
        return self.model_copy(update={"path": str(self.folder)})


def domain_names(source: Source) -> list[str]:
    """The domains of a source."""
    if source.layout == "domainnet":
        return domainnet_domains(source.folder)
    if source.layout in IMAGENET:
        return [source.layout]
    if source.domain_column is not None:
        column = source.domain_column
        loaded, _ = _load(source)
        values = {v for rows in loaded.values() for v in _named(rows, column, source)}
        return sorted(map(str, values - {None}))
    return [source.folder.name]


def open_domain(
    source: Source, domain: str, class_names: Sequence[str] | None = None
) -> dict[Split, Found]:
    """The splits of a domain; class folders have the `class_names` of the ID domain."""
    root = source.folder
    if source.layout != "hub" and not root.is_dir():
        raise ConfigError("no such folder", source=source.path)
    if source.layout == "folders":
        found = read_folders(root, class_names)
    elif source.layout == "domainnet":
        found = read_domainnet(root, domain)
    elif source.layout in IMAGENET:
        found = read_imagenet(source.layout, root)
    else:
        found = _tables(source, domain)
    if not found:
        problem = f"no images of {domain} in the layout {source.layout}"
        raise ConfigError(problem, source=source.path)
    return found


def carve(
    splits: Mapping[Split, Found], *, val: float, test: float, seed: int, is_ood: bool
) -> dict[Split, Found]:
    """Give a domain the validation and test splits that it lacks, as parts of its train split.

    Of a class of n images, `round(n * fraction)` become val and likewise test, but at least one
    each while one stays; none for a fraction of 0. They are those of the smallest hash of seed and
    name, so the choice depends neither on the order nor on other images. A domain without train has
    val taken from test.

    Nothing reads the train split of an OOD domain, so it becomes val and test, in the proportion of
    the fractions, or the one of them that is missing, or is left out if both exist.
    """
    found = dict(splits)
    fractions: dict[Split, float] = {"val": val, "test": test}
    shares = {split: share for split, share in fractions.items() if split not in found}
    if is_ood and "train" in found:
        train = found.pop("train")
        if not shares:
            reason = "the train split of an OOD domain, which nothing would read"
            found["val"].left_out.append((f"train ({len(train.rows):,} images)", reason))
        elif len(shares) == 2 and val and test:
            found |= _carved(train, "test", {"val": val / (val + test)}, seed)
        else:
            found[max(shares, key=lambda split: bool(shares[split]))] = train
        return found
    origin: Split = "train" if "train" in found else "test"
    return found | (_carved(found[origin], origin, shares, seed) if origin in found else {})


def _carved(
    found: Found, origin: Split, shares: Mapping[Split, float], seed: int
) -> dict[Split, Found]:
    """A split without what becomes other splits, and those."""
    names = found.rows["name"][:]
    of_label = dict[int, list[int]]()
    for row, label in enumerate(found.rows["label"][:]):
        of_label.setdefault(label, []).append(row)
    taken: dict[Split, list[int]] = {split: [] for split in (*shares, origin)}
    for rows in of_label.values():
        left = sorted(
            rows, key=lambda row: blake2b(f"{seed}/{names[row]}".encode(), digest_size=8).digest()
        )
        for split, share in shares.items():
            count = min(max(round(len(rows) * share), 1), len(left) - 1) if share else 0
            taken[split] += left[:count]
            left = left[count:]
        taken[origin] += left
    return {
        split: replace(
            found,
            rows=found.rows.select(sorted(rows)),
            left_out=found.left_out if split == origin else [],
        )
        for split, rows in taken.items()
        if rows
    }


_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "lz4://", "zstd://")
"""What a file of a data set may be read out of, in fsspec's chains of URLs."""


def _load(source: Source) -> tuple[Mapping[str, datasets.Dataset], set[str]]:
    """All splits of a data set that the package `datasets` reads by itself, and their files."""
    import datasets

    datasets.disable_progress_bars()
    is_here = source.folder.is_dir()
    try:
        with _only_files_of(source):
            builder = datasets.load_dataset_builder(
                str(source.folder) if is_here else source.path,
                source.subset,
                revision=source.revision,
                cache_dir=str(_cache_of(source)),
            )
        if hasattr(builder, "DECODERS"):  # which may end the reading of all images
            raise ValueError("its images are in tars (WebDataset): unpack them into class folders")
        files = {file for split in (builder.config.data_files or {}).values() for file in split}
        _check_files(files, source)
        builder.download_and_prepare()
        loaded: Mapping[str, datasets.Dataset] = builder.as_dataset()
    except Exception as error:  # of the network, of the hub, of damaged files
        reason = f"cannot be opened: {first_line(error.__cause__ or error)}"
        raise ConfigError(reason, source=source.path) from None
    if is_here:
        _check_class_names(sorted(file for file in files if file.endswith(".parquet")))
    return loaded, files


def _cache_of(source: Source) -> Path:
    """Folder of this machine for what is read from a source, which no other source may name."""
    name = str(source.folder.resolve()) if source.folder.is_dir() else source.path
    return cache_folder() / "lipsum-tune-sources" / hashlib.sha256(name.encode()).hexdigest()[:16]


def _within(source: Source) -> tuple[str, ...]:
    """Folders of the files of a source that `datasets` reads: its own, and that of its downloads.

    Each also without links in its path, as `datasets` names them.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    own = source.folder
    if not own.is_dir():
        own = Path(HF_HUB_CACHE, repo_folder_name(repo_id=source.path, repo_type="dataset"))
    folders = [own, _cache_of(source) / "downloads"]
    names = [name for f in folders for name in (os.path.normpath(f.absolute()), f.resolve())]
    return tuple(f"{name}{os.sep}" for name in names)


def _check_files(files: Iterable[str], source: Source) -> None:
    """Raise a ValueError for names of files that are not of this source.

    A README.md may name any host, any bucket, and any file that this user can read, also within a
    zip or in another data set of the hub.
    """
    own = (f"hf://datasets/{source.path}@", f"hf://datasets/{source.path}/")
    allowed = (*_within(source), *own)
    outside = set()
    for file in files:
        *within, archive = file.split("::")
        path = archive if "://" in archive else os.path.normpath(Path(archive).absolute())
        leads_out = not path.startswith(allowed) or ".." in path.split("/")
        if leads_out or not all(name.startswith(_ARCHIVES) for name in within):
            outside.add(path)
    if outside:
        raise ValueError(f"its README.md names files outside of it: {listed(sorted(outside))}")


@contextmanager
def _only_files_of(source: Source) -> Iterator[None]:
    """Check the names of files in a README.md before the package `datasets` (5.0) looks for them.

    It would ask the host of a URL, or a bucket, for what a pattern matches.
    """
    from datasets import data_files

    resolve = data_files.resolve_pattern

    def checked(pattern: str, base_path: str, *args: Any, **options: Any) -> list[str]:
        is_whole = "://" in pattern or pattern.startswith("/")
        _check_files([pattern if is_whole else f"{base_path}/{pattern}"], source)
        return resolve(pattern, base_path, *args, **options)

    data_files.resolve_pattern = checked
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


def _check_class_names(files: Iterable[str]) -> None:
    """Raise a ConfigError if Parquet files differ in the names of their classes.

    The package `datasets` gives the labels of all files the names of the first.
    """
    import datasets
    import pyarrow.parquet as pq

    known = dict[str, list[str]]()
    for file in files:
        for column, feature in datasets.Features.from_arrow_schema(pq.read_schema(file)).items():
            names = getattr(feature, "names", None)
            if names is not None and known.setdefault(column, names) != names:
                problem = "its classes have other names or another order than in other files"
                raise ConfigError(problem, key=column, source=file)


def _tables(source: Source, domain: str) -> dict[Split, Found]:
    """The splits of a table of images, with its columns called `image`, `label` and `name`."""
    import datasets

    loaded, files = _load(source)
    features = next(iter(loaded.values())).features
    image = _column(source, features, source.image_column, datasets.Image, "image")
    label = _column(source, features, source.label_column, datasets.ClassLabel, "label")
    class_names = _class_names(source, loaded, label)
    number: dict[Any, int] = {name: label for label, name in enumerate(class_names)}
    number |= {label: label for label in range(len(class_names))}
    found = dict[Split, Found]()
    left_out = _unread(source, files)
    for name, rows in loaded.items():
        usual = SPLIT_WORDS.get(name.lower(), "train" if len(loaded) == 1 else None)
        split = source.splits.get(name) if source.splits else usual
        labels = [number.get(value, -1) for value in rows[label][:]]
        what = f"split {name} ({len(rows):,} images)"
        if split is None:
            left_out.append((what, "not train, val or test"))
        elif max(labels, default=-1) < 0:  # Hugging Face has -1 for labels that are kept secret
            left_out.append((what, "without labels"))
        elif split in found:
            problem = f"several of its splits are {split}: {listed(loaded)}"
            raise ConfigError(problem, source=source.path)
        else:
            feature = datasets.ClassLabel(names=class_names)
            images = _named_images(rows, image, name).add_column("label", labels, feature=feature)
            if source.domain_column is not None:
                domains = _named(rows, source.domain_column, source)
                if missing := domains.count(None):
                    left_out.append((f"split {name} ({missing:,} images)", "of no domain"))
                own = [row for row, value in enumerate(domains) if value == domain]
                images = images.select(own)
            if len(images):
                found[split] = Found(images, within=_within(source))
    if found:  # what is left out of a table is told with its first split
        first = next(iter(found.values()))
        first.left_out += left_out
    return found


def _class_names(source: Source, loaded: Mapping[str, datasets.Dataset], label: str) -> list[str]:
    """Names of the classes in the order of the labels: the given ones, or those of the column."""
    import datasets

    kind = next(iter(loaded.values())).features[label]
    if not isinstance(kind, datasets.Value | datasets.ClassLabel):
        problem = "an image has no single label"
        raise ConfigError(problem, key="--label-column", value=label, source=source.path)
    if given := source.class_names or getattr(kind, "names", None):
        return list(given)
    values = [v for rows in loaded.values() for v in rows[label][:] if v not in (None, "")]
    if not all(isinstance(value, str) for value in values):
        problem = "its labels are no names, and the names of the classes are not known"
        hint = "--class-names FILE has one a line, in the order of the labels"
        raise ConfigError(problem, hint=hint, source=source.path)
    return sorted({*values})


def _unread(source: Source, files: Iterable[str]) -> list[tuple[str, str]]:
    """Parquet files that `datasets` leaves out: if some have the word of a split in their names, it
    reads only those."""
    if source.layout != "parquet":
        return []
    read = {Path(file).resolve() for file in files}
    there = sorted(source.folder.rglob("*.parquet"))
    unread = [path.relative_to(source.folder) for path in there if path.resolve() not in read]
    return [(str(path), "not train, val or test by its name") for path in unread]


def _named_images(rows: datasets.Dataset, image: str, split: str) -> datasets.Dataset:
    """The column of images with their names: split, row, and that of the file if there is one."""
    import datasets
    import pyarrow.compute as pc

    images = rows.select_columns([image]).rename_columns({image: "image"})
    images = images.cast_column("image", datasets.Image(decode=False))
    paths = pc.struct_field(images.data.column("image"), "path").to_pylist()
    names = []
    for row, path in enumerate(paths):
        of_file = [Path(path).name] if path else []
        names.append("/".join([split, f"{row:07d}", *of_file]))
    return images.add_column("name", names)


def _column(
    source: Source, features: Mapping[str, Any], given: str | None, kind: type, name: str
) -> str:
    """The given column, the one with the usual name, or the only one of a kind."""
    of_kind = [column for column, feature in features.items() if isinstance(feature, kind)]
    usual = [name] if name in features else of_kind
    chosen = [given] if given else usual
    if len(chosen) == 1 and chosen[0] in features:
        return chosen[0]
    problem = f"which column is not clear; there are {', '.join(features)}"
    raise ConfigError(problem, key=f"--{name}-column", source=source.path)


def _named(rows: datasets.Dataset, column: str, source: Source) -> list[str | None]:
    """A column of domains, by their names if it has some."""
    if column not in rows.features:
        problem = f"no such column; there are {', '.join(rows.features)}"
        raise ConfigError(problem, key="--domain-column", value=column, source=source.path)
    names = getattr(rows.features[column], "names", None)
    values = rows[column][:]
    if names is None:
        return [None if value is None else str(value) for value in values]
    return [None if value is None or value < 0 else names[value] for value in values]
