"""The command that shows configurations: the ready ones, one with its defaults, and the schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer
import yaml
from rich.console import Console

from tuning.cli.options import Set

app = typer.Typer()


@app.command()
def config(
    config: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or a ready configuration. Default: a list of these."),
    ] = None,
    set_: Set = None,
    list_: Annotated[bool, typer.Option("--list", help="List the ready configurations.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema, with which editors check keys.")
    ] = False,
) -> None:
    """Print a configuration as YAML with what it extends, overrides and all defaults filled in.

    Example: lipsum-tune config quickstart --set trial.steps=500
    """
    if schema:
        from tuning.config.schema import SearchFile

        found = SearchFile.model_json_schema()
        found["properties"]["extends"] = {  # it is resolved before the rest is validated
            "type": "string",
            "description": "A ready configuration, or the path of a file, that this one changes.",
        }
        found["properties"]["version"] = {"description": "Of lipsum-tune, in a run folder."}
        # With anyOf in place of oneOf, since a change of a parameter may look like a whole one.
        print(json.dumps(found, indent=2).replace('"oneOf":', '"anyOf":'))
    elif list_ or config is None:
        from tuning.views.overview import configs_table

        Console().print(configs_table())
    else:
        from tuning.config.validation import check_settings, load_config

        file = load_config(config, set_ or (), check=False)
        check_settings(file)
        print(yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, width=100), end="")
