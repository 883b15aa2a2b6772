"""Commands that show configurations: `schema` and `config`."""

from __future__ import annotations

import json

import typer
import yaml

from tuning.cli.options import Config, Set

app = typer.Typer()


@app.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, with which editors complete and check them.

    Example: lipsum-tune schema > lipsum-tune.schema.json
    """
    from tuning.config.schema import SearchFile

    found = SearchFile.model_json_schema()
    # These two keys are resolved before the rest is validated.
    found["properties"]["extends"] = {
        "type": "string",
        "description": "A ready configuration, or the path of a file, that this one changes.",
    }
    found["properties"]["variants"] = {
        "type": "object",
        "additionalProperties": {"type": "object"},
        "description": "Sets of dotted keys, by name; FILE:NAME on the command line applies one.",
    }
    print(json.dumps(found, indent=2))


@app.command()
def config(config: Config, set_: Set = None) -> None:
    """Print a configuration as YAML with what it extends, overrides and all defaults filled in.

    Example: lipsum-tune config quickstart --set trial.steps=500
    """
    from tuning.config.validation import load_config

    file = load_config(config, set_ or (), check=False)
    file.search_space()  # an impossible space is a mistake here too
    print(yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, width=100), end="")
