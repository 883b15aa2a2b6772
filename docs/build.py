"""What the site needs beside its pages: the reference, made from the code, and equations.

`python -m docs.build` writes `reference/configuration.md` from the JSON Schema of the
configuration, `reference/spaces.md` from the ready search spaces, and `reference/equations.md` from
the docstrings of the methods; `make docs` lets Typer write `reference/commands.md`. None of them is
in the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parent / "reference"
CONFIGURATION = """\
# Configuration keys

All keys of a configuration file with their defaults, section by section. `[ft]` marks the keys of
a section with `name: ft`, and `<key>` a key of your own choice. `lipsum-tune config --schema`
prints the same keys as a JSON Schema. Files and overrides: [Configuration](../configuration.md).
"""
SPACES = """\
# Search spaces

A search uses the ready space of its method, and `search.space.parameters` changes its ranges. The
first point is the centre of the prior by default:
the method's own settings, with the `trial.optim.lr` of the configuration, here the 1e-5 of the
configurations for full-size models. Sources stand in `search_spaces/ready_spaces.py`.

| space | parameter | values | scale | first point |
|---|---|---|---|---|
"""
EQUATIONS = """\
# Equations

What each [method](../methods.md) minimises and evaluates, as its file begins.
"""


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def configuration() -> str:
    """The page of the configuration: a table for each section."""
    from tuning.config.schema import SearchFile

    parts, shown = [CONFIGURATION], set[int]()
    schema = SearchFile.model_json_schema()
    for path, section in sections(schema, schema["$defs"]):
        if id(section) in shown:  # parameters of a method are those of `search.space`
            continue
        shown.add(id(section))
        parts += [f"\n## {f'`{path}`' if path else 'Top level'}\n", section.get("description", "")]
        parts += ["\n| key | value | default | meaning |", "|---|---|---|---|"]
        for name, field in section["properties"].items():
            default = field.get("default", {})  # that of a section stands in its own table
            default = "" if isinstance(default, dict) else f"`{json.dumps(default)}`"
            default = "required" if name in section.get("required", ()) else default
            parts.append(_row(f"`{name}`", _values(field), default, field.get("description", "")))
    return "\n".join(parts) + "\n"


def _values(field: dict[str, Any]) -> str:
    """Values that a key may have, in words."""
    if "anyOf" in field:
        return " or ".join(map(_values, field["anyOf"]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "items" in field:
        return "list of " + _values(field["items"])
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = (f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field)
    return " ".join([field.get("type", "section"), ", ".join(limits)]).strip()


def spaces() -> str:
    """The page of the ready search spaces: their parameters, ranges and first points."""
    from search_spaces.ready_spaces import SPACES as READY
    from tuning import load_config

    rows = []
    for name in READY:
        method = f"trial.method={{name: {name}}}"
        space = load_config("domainnet_vit_b16", [method], check=False).spaces[None]
        for key, values in space.parameters.items():
            ends, first = f"{values.low:g} to {values.high:g}", f"{space.initial_points[0][key]:g}"
            scale = "log" if values.log else "linear"
            rows.append(_row(f"`{name}`", f"`{key}`", ends, scale, first))
    return SPACES + "\n".join(rows) + "\n"


def equations() -> str:
    """The page of the equations: the docstring of each method's module."""
    from search_spaces.ready_spaces import SPACES as READY

    parts = [EQUATIONS]
    for name in READY:
        text = import_module(f"trainers.methods.{name}").__doc__ or ""
        parts += [f"\n## {name}\n\n", text.replace("::\n", ":\n")]
    return "".join(parts)


def sections(
    node: dict[str, Any], models: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dotted path and JSON Schema of each section at or below a node, outer ones first."""
    if "$ref" in node:
        yield from sections(models[node["$ref"].rpartition("/")[2]], models, path)
    elif "discriminator" in node:
        for name, ref in node["discriminator"]["mapping"].items():
            yield from sections({"$ref": ref}, models, f"{path}[{name}]")
    elif "properties" in node:
        kind = node["properties"].get("type", {}).get("const")
        yield f"{path}[{kind}]" if kind else path, node
        for name, field in node["properties"].items():
            yield from sections(field, models, f"{path}.{name}" if path else name)
    else:
        alternatives = [*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items")]
        for below in filter(None, alternatives):
            yield from sections(below, models, path)
        if isinstance(values := node.get("additionalProperties"), dict):
            yield from sections(values, models, f"{path}.<key>")


def equation(source: str, *_: Any, **options: Any) -> str:
    """A fenced block of the language `math` as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    return convert(source, display="block")


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for page in (configuration, spaces, equations):
        (REFERENCE / f"{page.__name__}.md").write_text(page(), encoding="utf-8")
