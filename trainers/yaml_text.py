"""Parsing YAML that a user wrote, with one-line errors, also for malicious texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import ConfigError
from trainers.text_files import read_text_file

MAX_DEPTH = 100
MAX_VALUES = 1_000_000
"""Values of a file after its aliases are expanded; class names of large data sets fit."""
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that no path or name has."""


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, which errors name.

    Raises:
        ConfigError: as `trainers.text_files.read_text_file` or `parse_yaml`.
    """
    return parse_yaml(read_text_file(path, source=path), path)


def parse_yaml(text: str, source: object) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: not valid YAML, a duplicate key, nested too deeply, or too large.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        return loader.construct_document(node)
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


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Number of values below a node and their depth; an alias counts as often as it is used."""
    if id(node) in known:
        return known[id(node)]
    if depth > MAX_DEPTH:
        raise _problem(f"nested more than {MAX_DEPTH} deep", node)
    if isinstance(node, yaml.ScalarNode) and _UNUSABLE.search(node.value):
        raise _problem("a text with the character NUL or half of a surrogate pair", node)
    known[id(node)] = (MAX_VALUES, MAX_DEPTH)  # for an alias that contains itself
    children: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    raise _problem(f"the key {key.value!r} is given twice", key)
                keys.add(key.value)
            children += [key, value]
    total, height = 1, 0
    for child in children:
        count, below = _measure(child, known, depth + 1)
        total, height = total + count, max(height, below + 1)
        if total > MAX_VALUES:
            raise _problem(f"more than {MAX_VALUES:,} values", child)
        if height > MAX_DEPTH:
            raise _problem(f"nested more than {MAX_DEPTH} deep", child)
    known[id(node)] = (total, height)
    return total, height


def _problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
