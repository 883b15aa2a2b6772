"""Where labelled images come from: one domain of a folder, of Parquet, of tars, of the hub.

Everything is opened by the package `datasets`, which from version 5 on runs no script of a data
set; images are neither read nor decoded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from pydantic import Field

from trainers.config_model import Frozen
from trainers.data.folders import SPLIT_WORDS, Found, Split, read_folders
from trainers.data.published import (
    CLASS_FOLDERS,
    domainnet_domains,
    read_domainnet,
    read_imagenet,
    read_wilds,
)
from trainers.data.storage import cache_folder
from trainers.errors import ConfigError, first_line, listed

if TYPE_CHECKING:
    import datasets

Layout = Literal[
    "folders", "parquet", "webdataset", "hub", "domainnet", "imagenet", "imagenet-v2", "imagenet-r",
    "imagenet-a", "imagenet-sketch", "objectnet", "iwildcam", "fmow",
]  # fmt: skip

LAYOUTS: dict[str, str] = dict(
    zip(
        get_args(Layout),
        (
            "class folders: [<domain>/][{train,val,test}/]<class>/*",
            "a folder of Parquet files as Hugging Face writes them",
            "WebDataset: *.tar with .cls or .json beside each image, classnames.txt",
            "a data set of the Hugging Face hub, by name, or a copy of one in a folder",
            "DomainNet: <domain>_{train,test}.txt beside the domains",
            "ImageNet: {train,val}/<WordNet id>/*.JPEG",
            "ImageNet-V2: folders 0 to 999",
            "ImageNet-R: folders of 200 WordNet ids",
            "ImageNet-A: folders of 200 WordNet ids",
            "ImageNet-Sketch: folders of WordNet ids",
            "ObjectNet: images/<class>/*.png",
            "WILDS iWildCam 2.0: metadata.csv, categories.csv, train/*",
            "WILDS FMoW 1.1: rgb_metadata.csv, images/*",
        ),
        strict=True,
    )
)
"""Layouts by name, each with its folders and files."""

GENERAL = ("folders", "parquet", "webdataset", "hub")
"""Layouts of one's own data, of which a fifth becomes test if there is no test split."""

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label", "json")


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
    """Column of the images. Default: the only one of that kind."""
    label_column: str | None = None
    """Column of the labels. Default: the only one of that kind."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of the labels, if the source does not have them."""
    splits: dict[str, Split] = Field(default_factory=dict)
    """From the source's splits to train, val and test. Default: by their usual names."""

    def absolute(self) -> Source:
        """The same with an absolute path, unless it is the name of a data set on the hub."""
        folder = Path(self.path).expanduser()
        if self.layout == "hub" and not folder.is_dir():
            return self
        return self.model_copy(update={"path": str(folder.absolute())})


def domain_names(source: Source) -> list[str]:
    """The domains of a source."""
    root = Path(source.path).expanduser()
    if source.layout == "domainnet":
        return domainnet_domains(root)
    if source.layout in ("iwildcam", "fmow"):
        return [source.layout, f"{source.layout}-ood"]
    if source.layout in CLASS_FOLDERS:
        return [source.layout]
    if source.domain_column is not None:
        tables = _load(source).values()
        values = {value for rows in tables for value in _values(rows, source.domain_column)}
        return sorted(str(value) for value in values if value is not None)
    return [root.absolute().name]


def open_domain(source: Source, domain: str) -> dict[Split, Found]:
    """The splits of a domain.

    Raises:
        ConfigError: there is no such source, or its images or labels are not to be found.
    """
    root = Path(source.path).expanduser()
    if source.layout != "hub" and not root.is_dir():
        raise ConfigError("no such folder", source=source.path)
    if source.layout == "folders":
        found = read_folders(root)
    elif source.layout == "domainnet":
        found = read_domainnet(root, domain)
    elif source.layout in CLASS_FOLDERS:
        found = read_imagenet(source.layout, root)
    elif source.layout in ("iwildcam", "fmow"):
        found = read_wilds(source.layout, root, domain)
    else:
        found = _tables(source, domain)
    if not any(len(split.rows) for split in found.values()):
        raise ConfigError(
            f"no images of {domain} in the layout {source.layout}", source=source.path
        )
    return found


def with_common_classes(
    domains: Mapping[str, dict[Split, Found]], id_domain: str | None
) -> dict[str, dict[Split, Found]]:
    """Class folders with the classes of all of them, in sorted order.

    Raises:
        ConfigError: a folder that the train split of the ID domain (without one, of the same
            domain) does not have: unsorted images would become a class.
    """
    import datasets

    every = [found for splits in domains.values() for found in splits.values()]
    names = sorted({name for found in every for name in found.class_names})
    for domain, splits in domains.items():
        trained = domains.get(id_domain or domain, {}).get("train")
        for split, found in splits.items():
            if trained and (more := [n for n in found.class_names if n not in trained.class_names]):
                problem = f"the folders {listed(more)} are no classes of the split train"
                hint = "sort their images by class, or remove them"
                raise ConfigError(problem, hint=hint, source=f"{domain}/{split}")

    def relabelled(found: Found) -> Found:
        to = np.array([names.index(name) for name in found.class_names])
        rows = found.rows.remove_columns("label").add_column(
            "label", to[found.rows["label"][:]], feature=datasets.ClassLabel(names=names)
        )
        return replace(found, rows=rows)

    return {d: {s: relabelled(f) for s, f in splits.items()} for d, splits in domains.items()}


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
    found, fractions = dict(splits), {"val": val, "test": test}
    missing: list[Split] = [split for split in ("val", "test") if split not in found]
    shares = {split: fractions[split] for split in missing if fractions[split]}
    if is_ood and "train" in found:
        train = found.pop("train")
        if not missing:
            reason = "the train split of an OOD domain, which nothing would read"
            found["val"].left_out.append((f"train ({len(train.rows):,} images)", reason))
        elif len(shares) == 2:
            found |= _carved(train, "test", {"val": val / (val + test)}, seed)
        else:
            found[next(iter(shares), missing[0])] = train
        return found
    origin: Split = "train" if "train" in found else "test"
    return found | (_carved(found[origin], origin, shares, seed) if origin in found else {})


def _carved(
    found: Found, origin: Split, shares: Mapping[Split, float], seed: int
) -> dict[Split, Found]:
    """A split without what becomes other splits, and those."""
    labels, names = np.array(found.rows["label"][:]), found.rows["name"][:]

    def rank(row: int) -> bytes:
        return blake2b(f"{seed}/{names[row]}".encode(), digest_size=8).digest()

    taken: dict[Split, list[int]] = {split: [] for split in (*shares, origin)}
    for label in np.unique(labels):
        left = sorted(np.flatnonzero(labels == label).tolist(), key=rank)
        number = len(left)
        for split, share in shares.items():
            count = min(max(round(number * share), 1), len(left) - 1)
            taken[split] += left[:count]
            left = left[count:]
        taken[origin] += left
    made = {
        split: replace(found, rows=found.rows.select(sorted(rows)), left_out=[])
        for split, rows in taken.items()
        if rows
    }
    made[origin].left_out = found.left_out
    return made


def _load(source: Source) -> Mapping[str, datasets.Dataset]:
    """All splits of a data set that the package `datasets` reads by itself."""
    import datasets

    datasets.disable_progress_bars()
    folder = Path(source.path).expanduser()
    path = str(folder.absolute()) if folder.is_dir() else source.path
    try:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(
            path, source.subset, revision=source.revision, cache_dir=str(cache_folder())
        )
    except Exception as error:  # of the network, of the hub, of damaged files
        reason = f"cannot be opened: {first_line(error.__cause__ or error)}"
        raise ConfigError(reason, source=source.path) from None
    return loaded


def _tables(source: Source, domain: str) -> dict[Split, Found]:
    """The splits of a table of images, with its columns called `image`, `label` and `name`."""
    import datasets
    import pyarrow.compute as pc

    loaded, where = _load(source), source.path
    columns = {
        name: [
            _column(rows, given, kind, usual, where)
            for given, kind, usual in (
                (source.image_column, datasets.Image, _IMAGE_NAMES),
                (source.label_column, datasets.ClassLabel, _LABEL_NAMES),
            )
        ]
        for name, rows in loaded.items()
    }
    labels = {
        # Given names replace those of the file, so its labels count.
        name: list(rows[columns[name][1]][:])
        if source.class_names and hasattr(rows.features[columns[name][1]], "names")
        else _values(rows, columns[name][1])
        for name, rows in loaded.items()
    }
    class_names = _class_names(source, loaded, columns, labels)
    number: dict[int | str | None, int] = {c: label for label, c in enumerate(class_names)}
    found, left_out = dict[Split, Found](), list[tuple[str, str]]()
    for name, rows in loaded.items():
        usual = SPLIT_WORDS.get(name.lower(), "train" if len(loaded) == 1 else None)
        split = source.splits.get(name) if source.splits else usual
        what = f"split {name} ({len(rows):,} images)"
        # Hugging Face sets all labels of a split to -1 if they are kept secret.
        if split is None or all(label in (-1, None) for label in labels[name]):
            left_out.append((what, "without labels" if split else "not train, val or test"))
            continue
        if split in found:
            raise ConfigError(f"several of its splits are {split}: {listed(loaded)}", source=where)
        image = columns[name][0]
        images = rows.select_columns([image])
        images = images if image == "image" else images.rename_column(image, "image")
        images = images.cast_column("image", datasets.Image(decode=False))
        paths = pc.struct_field(images.data.column("image"), "path").to_pylist()
        names = [
            "/".join([name, f"{row:07d}", *([Path(path).name] if path else [])])
            for row, path in enumerate(paths)
        ]
        of_rows = [
            number.get(label, -1)
            if isinstance(label, str) or label is None or label >= len(class_names)
            else label
            for label in labels[name]
        ]
        feature = datasets.ClassLabel(names=class_names)
        images = images.add_column("label", of_rows, feature=feature).add_column("name", names)
        if source.domain_column is not None:
            domains = _values(rows, source.domain_column)
            images = images.select([row for row, value in enumerate(domains) if value == domain])
        if len(images):
            found[split] = Found(images)
    if not found:
        problem = f"no split with labels of {domain}; found {listed(loaded)}"
        raise ConfigError(problem, source=where)
    next(iter(found.values())).left_out += left_out
    return found


def _column(
    rows: datasets.Dataset, given: str | None, kind: type, usual: tuple[str, ...], where: str
) -> str:
    """The given column, the only one of a kind, or the first with a usual name."""
    features = rows.features
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    chosen = [given] if given else of_kind if len(of_kind) == 1 else usual
    found = [name for name in chosen if name in features]
    if found:
        return found[0]
    key = f"--{'image' if usual is _IMAGE_NAMES else 'label'}-column"
    problem = "no such column" if given else "which column is not clear"
    raise ConfigError(f"{problem}; there are {', '.join(features)}", key=key, source=where)


def _values(rows: datasets.Dataset, column: str) -> list[int | str | None]:
    """A column of labels or domains, by their names if it has some."""
    if column not in rows.features:
        problem = f"no column {column!r}; there are {', '.join(rows.features)}"
        raise ConfigError(problem)
    feature, values = rows.features[column], rows[column][:]
    if hasattr(feature, "int2str"):
        known = range(len(feature.names))
        return [feature.names[v] if v in known else None if v is None else -1 for v in values]
    if column == "json":  # of a WebDataset
        return [(v or {}).get("label", (v or {}).get("cls")) for v in values]
    return list(values)


def _class_names(
    source: Source,
    loaded: Mapping[str, datasets.Dataset],
    columns: Mapping[str, list[str]],
    labels: Mapping[str, list[int | str | None]],
) -> list[str]:
    """Names that are given, of the features, the labels themselves, or of `classnames.txt`."""
    if source.class_names:
        return list(source.class_names)
    for name, rows in loaded.items():
        if hasattr(rows.features[columns[name][1]], "names"):
            return list(rows.features[columns[name][1]].names)
    every = {label for of_split in labels.values() for label in of_split} - {None}
    if every and all(isinstance(label, str) for label in every):
        return sorted(map(str, every))
    for folder in (Path(source.path), Path(source.path).parent):
        if (file := folder / "classnames.txt").is_file():
            return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    problem = "its labels are numbers, and the names of the classes are not known"
    hint = "--class-names FILE has one a line, in the order of the labels"
    raise ConfigError(problem, hint=hint, source=source.path)
