"""Commands that show what there is: `list`, `schema` and `config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from tuning.cli.options import Config, Set

app = typer.Typer()


@app.command("list")
def list_(
    runs: Annotated[
        Path | None,
        typer.Argument(help="The folder of runs. Default: runs/, and that of Ray jobs, if any."),
    ] = None,
) -> None:
    """List runs, the last one first, and the ready configurations.

    Example: lipsum-tune list
    """
    from tuning.runs.run_folder import places_of_runs
    from tuning.views.overview import configs_table, runs_table
    from tuning.views.result_table import fit_table

    console = Console()
    for table in (*map(runs_table, [runs] if runs else places_of_runs()), configs_table()):
        console.print(fit_table(table, console.width), "")


@app.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, with which editors complete and check them.

    Example: lipsum-tune schema > lipsum-tune.schema.json
    """
    from tuning.config.schema import SearchFile

    found = SearchFile.model_json_schema()
    found["properties"]["extends"] = {  # it is resolved before the rest is validated
        "type": "string",
        "description": "A ready configuration, or the path of a file, that this one changes.",
    }
    print(json.dumps(_any_of(found), indent=2))


def _any_of(schema: Any) -> Any:
    """With anyOf in place of oneOf, since a change of a parameter may look like a whole one."""
    if isinstance(schema, dict):
        return {"anyOf" if k == "oneOf" else k: _any_of(value) for k, value in schema.items()}
    return [_any_of(part) for part in schema] if isinstance(schema, list) else schema


@app.command()
def config(config: Config, set_: Set = None) -> None:
    """Print a configuration as YAML with what it extends, overrides and all defaults filled in.

    Example: lipsum-tune config quickstart --set trial.steps=500
    """
    from tuning.config.validation import load_config

    file = load_config(config, set_ or (), check=False)
    file.search_space()  # an impossible space is a mistake here too
    print(yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, width=100), end="")
