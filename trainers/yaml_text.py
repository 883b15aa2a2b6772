"""Parsing YAML that a user wrote, with one-line errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import ConfigError, system_words

_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that no path or name has."""

MOST_REPEATED = 10_000
"""Values that aliases may add to a file. A few nested ones make a gigabyte of 200 bytes."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last, and endless values."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        return super().construct_object(node, deep=True)  # refuses a node within itself

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        sizes: dict[int, int] = {}
        if node is not None and _size(node, sizes) > len(sizes) + MOST_REPEATED:
            raise _problem(f"aliases repeat more than {MOST_REPEATED:,} values", node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in known:
                    raise _problem(f"the key {key.value!r} is given twice", key)
                known.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if _UNUSABLE.search(node.value):
            raise _problem("a text with the character NUL or half of a surrogate pair", node)
        return node


# YAML 1.1 reads 1e-5, which has no point, as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of values in a node, those of an alias counted wherever it stands.

    `sizes` has those of the nodes that were met so far, by `id`.
    """
    if id(node) not in sizes:
        sizes[id(node)] = 1  # of a node within itself, which is refused later
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in below for child in pair] if pairs else below
        sizes[id(node)] += sum(_size(child, sizes) for child in children)
    return sizes[id(node)]


def _problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def read_text(path: Path, encoding: str = "utf-8", **where: Any) -> str:
    """The content of a file; `where` are fields of the error."""
    try:
        return path.read_text(encoding)
    except OSError as error:
        raise ConfigError(system_words(error), **where) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(error), **where) from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, which errors name; see `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, source=path), path)


def parse_yaml(text: str, source: object) -> Any:
    """The value of a YAML text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}{error.problem}", source=source) from None
    except RecursionError:
        raise ConfigError("nested too deeply", source=source) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as an impossible date
        raise ConfigError(" ".join(str(error).split()), source=source) from None
    except (AttributeError, LookupError):  # of PyYAML 6.0 for `!!timestamp x`, `!!bool x`
        raise ConfigError("a value is not of the type of its tag", source=source) from None
