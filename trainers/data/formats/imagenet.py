"""Published data sets of class folders, as data: ImageNet, its shifts, and ObjectNet.

Class folders are named by WordNet id (`n01440764`), those of ImageNet-V2 by the index of the class
among the sorted ids. The source is the data set's own folder or the one its archive was unpacked
in. What ImageNet calls validation is the set that papers report, so it becomes the split test.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from trainers.data.formats.image_files import class_images, contents, folders_in
from trainers.data.formats.index import (
    Example,
    Finding,
    Index,
    LayoutOptions,
    Split,
    check_options,
    join,
    read_text,
)
from trainers.data.formats.readers import FileSource
from trainers.data.storage import Store
from trainers.errors import ConfigError, listed

ClassTable = Literal["imagenet", "imagenet_r", "imagenet_a"]


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """How one data set lies on a disk."""

    description: str
    """One line for the help of `prepare`."""
    archives: tuple[str, ...]
    """Folders that its archive unpacks into; one of them has to be chosen as the source if several
    are there, and its name is kept in the metadata."""
    splits: Mapping[str, Split] = field(default_factory=lambda: {"": "test"})
    """Folder to split; "" if the class folders lie at the top."""
    classes: ClassTable = "imagenet"
    """List of WordNet ids, whose order is that of the labels."""
    numbered: bool = False
    """Whether class folders are indices into the list instead of ids."""
    subset: bool = False
    """Whether the class folders of the first split are all classes there are."""
    mappings: str | None = None
    """Folder of ObjectNet's mapping files, which then define the classes."""
    border: int = 0
    """Pixels to cut off every side."""


DATA_SETS = {
    "imagenet": ClassFolders(
        description="ImageNet: {train,val}/<WordNet id>/*.JPEG",
        archives=("ILSVRC/Data/CLS-LOC",),  # as in Kaggle's archive
        splits={"train": "train", "val": "test"},
        subset=True,
    ),
    "imagenet-v2": ClassFolders(
        description="ImageNet-V2: folders 0 to 999",
        archives=(
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2-threshold0.7-format-val",
            "imagenetv2-top-images-format-val",
        ),
        numbered=True,
    ),
    "imagenet-r": ClassFolders(
        description="ImageNet-R: folders of 200 WordNet ids",
        archives=("imagenet-r",),
        classes="imagenet_r",
    ),
    "imagenet-a": ClassFolders(
        description="ImageNet-A: folders of 200 WordNet ids",
        archives=("imagenet-a",),
        classes="imagenet_a",
    ),
    "imagenet-sketch": ClassFolders(
        description="ImageNet-Sketch: folders of WordNet ids", archives=("sketch",)
    ),
    "objectnet": ClassFolders(
        description="ObjectNet: images/<class>/*.png and mappings/*.json",
        archives=("objectnet-1.0",),
        splits={"images": "test"},
        mappings="mappings",
        border=2,
    ),
}
"""By the name of the layout."""


@cache
def wordnet_ids(classes: ClassTable = "imagenet") -> tuple[str, ...]:
    """WordNet ids in the order of the labels: ImageNet's 1000, or the 200 of ImageNet-R or -A."""
    spec = find_spec("timm")  # importing timm takes seconds, and its lists are plain files
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "data" / "_info" / f"{classes}_synsets.txt"
    return tuple(file.read_text(encoding="utf-8").split())


def read_data_set(layout: str, source: Store, options: LayoutOptions) -> list[Index]:
    """Index one of `DATA_SETS`.

    Raises:
        ConfigError: its folders are not there, one of them is not named as a class of the data set,
            or no folder holds an image.
    """
    check_options(options, layout, "domain")
    data_set = DATA_SETS[layout]
    base = _find_base(source, layout, data_set)
    metadata = {"layout": layout}
    archive = base or source.root.rpartition("/")[2]
    if len(data_set.archives) > 1 and archive in data_set.archives:
        metadata["variant"] = archive
    found = {"", *folders_in(source, base)}
    splits = {folder: split for folder, split in data_set.splits.items() if folder in found}
    folders = {folder: folders_in(source, join(base, folder)) for folder in splits}
    class_names = wordnet_ids(data_set.classes)
    if data_set.subset:
        class_names = tuple(next(iter(folders.values())))
    elif data_set.mappings:
        class_map = _objectnet_class_map(source, join(base, data_set.mappings))
        class_names = tuple(sorted(class_map))
        metadata["class_map"] = json.dumps(class_map, sort_keys=True)
    indexes = []
    for folder, split in splits.items():
        where = join(source.url, base, folder)
        labels, left_out = _labels(where, layout, data_set, folders[folder], class_names)
        # Paths begin at the data set, so that the same images are carved wherever the source is.
        own = source.at(base) if base else source
        images, findings = class_images(own, folder, list(labels))
        examples = tuple(
            Example(FileSource(join(base, path)), path, labels[name])
            for name, paths in images.items()
            for path in paths
        )
        if not examples:
            stray = len(contents(source, join(base, folder)).images)
            problem = f"no image in any of its class folders, and {stray} beside them"
            raise ConfigError(problem, hint="sort them by class", source=where)
        present = {example.label for example in examples}
        names = dict(enumerate(map(str, range(1000)) if data_set.numbered else class_names))
        names |= {label: name for name, label in labels.items()}  # such as 0002 for 2
        findings += [
            Finding(join(folder, names[label]), "missing class", "it has no image")
            for label in range(len(class_names))
            if label not in present
        ]
        kind = "no ImageNet class" if data_set.mappings else "class not in train"
        findings += [Finding(join(folder, name), kind, "left out") for name in left_out]
        domain, border = options.domain or layout, data_set.border
        index = Index(domain, split, class_names, examples, tuple(findings), metadata, border)
        indexes.append(index)
    return indexes


def _find_base(source: Store, layout: str, data_set: ClassFolders) -> str:
    """The data set's folder in the source: the source itself, or an archive's folder."""
    table = wordnet_ids(data_set.classes)

    def fits(folder: str) -> bool:
        there = folders_in(source, folder)
        if "" not in data_set.splits:
            return any(name in data_set.splits for name in there)
        return any(_class_index(name, data_set.numbered, table) is not None for name in there)

    fitting = [folder for folder in ("", *data_set.archives) if fits(folder)]
    if fitting and (not fitting[0] or len(fitting) == 1):
        return fitting[0]
    if fitting:
        raise ConfigError(f"several variants: {listed(fitting)}; give one", source=source.url)
    wanted = " or ".join(name for name in data_set.splits if name)
    example = "0 to 999" if data_set.numbered else f"such as {table[0]}"
    raise ConfigError(
        f"not {layout}: no folder {wanted or example}, here or in {' or '.join(data_set.archives)}",
        hint=f"there is {listed(folders_in(source))}",
        source=source.url,
    )


def _class_index(name: str, numbered: bool, table: tuple[str, ...]) -> int | None:
    if not numbered:
        return table.index(name) if name in table else None
    index = int(name) if name.isascii() and name.isdecimal() else -1
    return index if 0 <= index < len(table) else None


def _labels(
    where: str, layout: str, data_set: ClassFolders, folders: list[str], names: tuple[str, ...]
) -> tuple[dict[str, int], list[str]]:
    """Label of each class folder in the order of the labels, and the folders that are left out.

    Folders are left out only if ObjectNet's class has no ImageNet class, or a subset of ImageNet's
    training images lacks the class.
    """
    labels: dict[str, int] = {}
    left_out = []
    for folder in folders:
        label = _class_index(folder, data_set.numbered, names)
        is_known = data_set.mappings or folder in wordnet_ids(data_set.classes)
        if label is None and (data_set.mappings or (data_set.subset and is_known)):
            left_out.append(folder)
        elif label is None or (data_set.subset and not is_known):
            raise ConfigError(
                f"the folder {folder!r} is not one of the classes of {layout}",
                hint="for classes of your own, use the layout folders",
                source=where,
            )
        elif label in labels.values():
            raise ConfigError(f"two folders are the class {label}, e.g. {folder!r}", source=where)
        else:
            labels[folder] = label
    return dict(sorted(labels.items(), key=lambda item: item[1])), left_out


def _objectnet_class_map(source: Store, mappings: str) -> dict[str, list[str]]:
    """WordNet ids of each class folder of ObjectNet that has any.

    A class counts as recognised by any of its ImageNet classes.

    The files chain: folder -> ObjectNet's label -> ImageNet's names of 2012, joined by `; `. The
    list of these names is in the order of 2012; another file maps its lines to the indices of the
    sorted WordNet ids.
    """

    def read(file: str) -> str:
        if not source.exists(join(mappings, file)):
            raise ConfigError(
                "is missing",
                hint="ObjectNet's archive, objectnet-1.0.zip, has it in its folder mappings",
                source=join(source.url, mappings, file),
            )
        return read_text(source, join(mappings, file))[0]

    def read_json(file: str) -> dict[str, Any]:
        text, where = read(file), join(source.url, mappings, file)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not JSON: {error}", source=where) from None
        if not isinstance(values, dict) or any(isinstance(v, dict | list) for v in values.values()):
            raise ConfigError("a JSON object of words or numbers is expected", source=where)
        return values

    labels = read_json("folder_to_objectnet_label.json")
    names_by_label = read_json("objectnet_to_imagenet_1k.json")
    names = read("imagenet_to_label_2012_v2").rstrip("\n").split("\n")
    lines = read_json("pytorch_to_imagenet_2012_id.json")
    try:
        index_of_line = {line: int(index) for index, line in lines.items()}
        ids = defaultdict(list)  # two ImageNet classes share the name `crane`
        for line, name in enumerate(names):
            ids[name.strip()].append(wordnet_ids()[index_of_line[line]])
        if not len(names) == len(index_of_line) == len(wordnet_ids()):
            raise ValueError(f"{len(names)} names of ImageNet's {len(wordnet_ids())} classes")
        folders = {label: folder for folder, label in labels.items()}
        class_map = {}
        for label, joined in names_by_label.items():
            chosen = [ids[name.strip()] for name in str(joined).split("; ")]
            if any(len(found) != 1 for found in chosen):
                raise ValueError(f"{label!r}: one of the names {joined!r} is unknown or ambiguous")
            class_map[folders[label]] = [found[0] for found in chosen]
        if not class_map:
            raise ValueError("no class is mapped")
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the mapping files do not fit together: {error}", source=join(source.url, mappings)
        ) from None
    return class_map
