"""What the site needs beside its pages: the reference, made from the code, and equations.

`python -m docs.build` writes `reference/configuration.md` from the fields of the configuration
models, `reference/commands.md` from the commands, and `reference/spaces.md` from the ready search
spaces. `make docs` runs it; `tests/test_docs.py` compares the files in the repository with what it
writes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

REFERENCE = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by `make docs` from the code that it describes. -->\n\n"
CONFIGURATION = """\
# Configuration keys

All keys of a configuration file with their defaults, section by section. `[ft]` marks the keys of
a section with `name: ft`, and `<key>` a key of your own choice. Limits of a million and more are
left out. `lipsum-tune schema` prints the same keys as a JSON Schema. Files and
overrides: [Configuration](../configuration.md).
"""
COMMANDS = """\
# Commands

CONFIG is a YAML file or the name of a ready configuration, RUN a run folder or the name of one in
`runs/`. `--help` of a command prints what stands here, `lipsum-tune --debug COMMAND` the traceback
behind a one-line error, and `--install-completion` installs completion for your shell. All
commands have the same [exit statuses](../configuration.md#exit-status). The layouts of `prepare`
stand under [Layouts](../own_images.md#layouts).
"""
SPACES = """\
# Search spaces

What a search without `search.space` searches: the ready space of its method. `search.space.name`
selects another one, `search.space.parameters` changes ranges. The first point is the centre of the
prior by default: the method's own settings, with the `trial.optim.lr` of the configuration, here
the 1e-5 of the configurations for full-size models. Sources stand in
`search_spaces/ready_spaces.py`.

| space | parameter | values | scale | first point |
|---|---|---|---|---|
"""


def commands() -> str:
    """The page of the command line: help, example, arguments and options of each command."""
    from typer.main import get_command

    from cluster.cli import app

    parts = [NOTICE + COMMANDS]
    for name, command in get_command(app).commands.items():
        if command.hidden:
            continue
        about, _, example = inspect.cleandoc(command.help).partition("Example: ")
        parts += [f"\n## {name}\n", about, f"```sh\n{example.strip()}\n```\n"]
        types = get_type_hints(command.callback, include_extras=True)
        rows = [_parameter(parameter, types[parameter.name]) for parameter in command.params]
        if rows:
            parts += ["| argument or option | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def _parameter(parameter: Any, annotated: Any) -> str:
    kind, info = annotated.__origin__, annotated.__metadata__[0]
    is_option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
    literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    choices = ", ".join(f"`{choice}`" for part in literals for choice in get_args(part))
    meaning = info.help + (f" One of {choices}." if choices else "")
    is_value = parameter.default is not None and not isinstance(parameter.default, bool)
    default = "required" if parameter.required else f"`{parameter.default}`" if is_value else ""
    return _row(", ".join(f"`{name}`" for name in names), default, meaning)


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def configuration() -> str:
    """The page of the configuration: a table for each section."""
    from tuning.config.schema import SearchFile

    parts = [NOTICE + CONFIGURATION]
    schema = SearchFile.model_json_schema()
    shown = set[int]()
    for path, section in sections(schema, schema["$defs"]):
        if id(section) in shown:  # parameters of a method are those of `search.space`
            continue
        shown.add(id(section))
        title = f"`{path}`" if path else "Top level"
        parts += [f"\n## {title}\n", section.get("description", "") + "\n"]
        parts += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for name, field in section["properties"].items():
            required = name in section.get("required", ())
            default = "required" if required else _default(field)
            meaning = field.get("description", "")
            parts.append(_row(f"`{name}`", _values(field), default, meaning))
    return "\n".join(parts) + "\n"


def spaces() -> str:
    """The page of the ready search spaces: their parameters, ranges and first points."""
    from search_spaces.ready_spaces import METHODS
    from search_spaces.ready_spaces import SPACES as READY
    from tuning import load_config

    rows = []
    for name in READY:
        method = name if name in METHODS else "lipsum_ft"
        changes = [f"search.space={{name: {name}}}", f"trial.method={{name: {method}}}"]
        space = load_config("domainnet_vit_b16", changes, check=False).search_space()
        for key, values in space.parameters.items():
            low, high = (f"{end:g}" for end in (values.low, values.high))
            scale, first = "log" if values.log else "linear", f"{space.initial_points[0][key]:g}"
            rows.append(_row(f"`{name}`", f"`{key}`", f"{low} to {high}", scale, first))
    return NOTICE + SPACES + "\n".join(rows) + "\n"


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


def _values(field: dict[str, Any]) -> str:
    """Values that a key may have, in words."""
    if "anyOf" in field:
        return " or ".join(map(_values, field["anyOf"]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = field.get("type")
    if kind in ("integer", "number"):
        limits = {
            "minimum": ">=",
            "exclusiveMinimum": ">",
            "maximum": "<=",
            "exclusiveMaximum": "<",
        }
        found = [
            f"{sign} {field[name]:g}"
            for name, sign in limits.items()
            if name in field and field[name] < 1e6  # larger ones only catch nonsense
        ]
        return " ".join([kind, ", ".join(found)]).strip()
    if "prefixItems" in field:
        return "[" + ", ".join(map(_values, field["prefixItems"])) + "]"
    if kind == "array":
        return "list of " + _values(field["items"])
    if kind == "object":
        values = field.get("additionalProperties")
        return "mapping" + (f" to {_values(values)}" if isinstance(values, dict) else "")
    return kind or "section"


def _default(field: dict[str, Any]) -> str:
    """The default as it is written in YAML; none for sections."""
    if _values(field).endswith("section"):
        return ""
    default = field.get("default", {})
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def equation(source: str, *_: Any, **options: Any) -> str:
    """A fenced block of the language `math` as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    return convert(source, display="block")


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for page in (configuration, commands, spaces):
        (REFERENCE / f"{page.__name__}.md").write_text(page(), encoding="utf-8")
