"""ObjectNet, whose classes are not ImageNet's: the archive's own files say which go together.

A source is `objectnet-1.0` as its archive unpacks, or the folder that holds it: `images/<class>/*`
and, in `mappings`, four files. A class counts as recognised by any of its ImageNet classes, so what
is kept for readers is a `class_map` from each class to their WordNet ids. Classes without any are
left out. Every image has a red frame, which has to come off.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from trainers.data.formats.class_folders import folders_in, images_of_classes
from trainers.data.formats.imagenet import wordnet_ids
from trainers.data.formats.index import (
    Finding,
    LayoutOptions,
    SplitListing,
    beside,
    join,
    only,
    read_text,
)
from trainers.data.storage import Store
from trainers.errors import ConfigError

_ARCHIVE: Final = "objectnet-1.0"
_BORDER: Final = 2  # pixels

_FOLDERS: Final = "folder_to_objectnet_label.json"
_IMAGENET_NAMES: Final = "objectnet_to_imagenet_1k.json"
_LABELS_OF_2012: Final = "imagenet_to_label_2012_v2"
_INDICES_OF_2012: Final = "pytorch_to_imagenet_2012_id.json"


def objectnet(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """The classes of ObjectNet that ImageNet has as well, all in the split test.

    Class names are folder names, sorted. The metadata's `class_map` is a JSON object from each of
    them to WordNet ids.

    Raises:
        ConfigError: no folder `images`, or a mapping that is missing or does not fit the others.
    """
    only(options, "objectnet", "domain")
    there = folders_in(source)
    base = _ARCHIVE if _ARCHIVE in there else ""
    if "images" not in folders_in(source, base):
        raise ConfigError(
            f"{join(source.url, base)}: ObjectNet's folder images is looked for, there or in "
            f"{_ARCHIVE}/; there is {beside(folders_in(source, base))}"
        )
    class_map = _class_map(source, join(base, "mappings"))
    class_names = tuple(sorted(class_map))
    labels = {name: label for label, name in enumerate(class_names)}
    examples, findings = images_of_classes(source, base, "images", labels)
    findings += tuple(
        Finding(f"images/{folder}", "no ImageNet class", "left out")
        for folder in folders_in(source, join(base, "images"))
        if folder not in class_map
    )
    metadata = {"layout": "objectnet", "class_map": json.dumps(class_map, sort_keys=True)}
    domain = options.domain or "objectnet"
    return [SplitListing(domain, "test", class_names, examples, findings, metadata, border=_BORDER)]


def _class_map(source: Store, mappings: str) -> dict[str, list[str]]:
    """The WordNet ids of each class folder that has any.

    The files chain: folder -> ObjectNet's label -> ImageNet's names of 2012 (joined by `; `), whose
    lines are numbered in the order of 2012 -> that number's index in the order of WordNet ids.
    """
    folders = {label: name for name, label in _read_json(source, mappings, _FOLDERS).items()}
    ids = _ids_by_name(source, mappings)
    class_map = {}
    for label, names in _read_json(source, mappings, _IMAGENET_NAMES).items():
        where = f"{join(source.url, mappings, _IMAGENET_NAMES)}: {label!r}"
        if label not in folders:
            raise ConfigError(f"{where} is no label in {_FOLDERS}")
        class_map[folders[label]] = [_the_id(ids, name, where) for name in str(names).split("; ")]
    if not class_map:
        raise ConfigError(f"{join(source.url, mappings, _IMAGENET_NAMES)}: it maps no class")
    return class_map


def _the_id(ids: Mapping[str, list[str]], name: str, where: str) -> str:
    found = ids.get(name.strip(), [])
    if len(found) != 1:
        times = f"{len(found)} times" if found else "not"
        raise ConfigError(f"{where}: the name {name!r} is {times} in {_LABELS_OF_2012}")
    return found[0]


def _ids_by_name(source: Store, mappings: str) -> Mapping[str, list[str]]:
    """WordNet ids by ImageNet's name of 2012; two classes of it are both called `crane`."""
    text, _ = read_text(source, _mapping(source, mappings, _LABELS_OF_2012))
    names = [line.strip() for line in text.rstrip("\n").split("\n")]
    of_2012 = _read_json(source, mappings, _INDICES_OF_2012)
    indices = {number: int(index) for index, number in of_2012.items() if index.isdecimal()}
    wnids = wordnet_ids()
    if len(names) != len(wnids) or sorted(indices.values()) != list(range(len(wnids))):
        raise ConfigError(
            f"{join(source.url, mappings)}: {_LABELS_OF_2012} has {len(names)} names and "
            f"{_INDICES_OF_2012} {len(indices)} numbers; ImageNet has {len(wnids)} classes"
        )
    ids = defaultdict(list)
    for number, name in enumerate(names):
        if number not in indices:
            raise ConfigError(f"{join(source.url, mappings, _INDICES_OF_2012)}: no number {number}")
        ids[name].append(wnids[indices[number]])
    return ids


def _read_json(source: Store, mappings: str, file: str) -> dict[str, Any]:
    text, _ = read_text(source, _mapping(source, mappings, file))
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{join(source.url, mappings, file)}: not JSON: {error}") from None
    if not isinstance(values, dict) or any(isinstance(v, dict | list) for v in values.values()):
        raise ConfigError(
            f"{join(source.url, mappings, file)}: a JSON object of words or numbers is expected"
        )
    return values


def _mapping(source: Store, mappings: str, file: str) -> str:
    """The path of one of the mapping files.

    Raises:
        ConfigError: it is not there; it says where it comes from.
    """
    path = join(mappings, file)
    if not source.exists(path):
        raise ConfigError(
            f"{join(source.url, path)} is missing: ObjectNet's archive ({_ARCHIVE}.zip, from "
            "objectnet.dev) has it in its folder mappings"
        )
    return path
