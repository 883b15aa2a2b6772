"""ObjectNet's classes and the ImageNet classes that they stand for, from the archive's own files.

A class counts as recognised by any of its ImageNet classes. Classes without any are left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from trainers.data.formats.index import join, read_text
from trainers.data.storage import Store
from trainers.errors import ConfigError


def objectnet_class_map(
    source: Store, mappings: str, wordnet_ids: Sequence[str]
) -> dict[str, list[str]]:
    """WordNet ids of each class folder that has any.

    The files chain: folder -> ObjectNet's label -> ImageNet's names of 2012, joined by `; `. The
    list of these names is in the order of 2012; another file maps its lines to the indices of the
    sorted WordNet ids.

    Raises:
        ConfigError: a file is missing or does not fit the others.
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
            ids[name.strip()].append(wordnet_ids[index_of_line[line]])
        if len(names) != len(wordnet_ids) or len(index_of_line) != len(wordnet_ids):
            raise ValueError(f"{len(names)} names of ImageNet's {len(wordnet_ids)} classes")
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
