"""Commands beside a search: `control` steers a running one, `config` shows configurations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from tuning.cli.options import Run, Set, app, names, show, warn, word_for

if TYPE_CHECKING:
    from search_spaces import SearchSpace


@app.command()
def control(
    run: Run,
    stop: Annotated[
        str | None, typer.Option(help="End this trial, `7`, within some steps, as pruned.")
    ] = None,
    enqueue: Annotated[
        str | None,
        typer.Option(
            help="Try this point next, such as `reg_weight=1,lr=3e-4`. Parameters that are left "
            "out have the values of the first initial point."
        ),
    ] = None,
    end: Annotated[
        bool,
        typer.Option("--end", help="Stop all trials and end the search; `resume` continues them."),
    ] = False,
) -> None:
    """Steer a running search: its driver follows within seconds, also on another machine.

    Example: lipsum-tune control quickstart --enqueue reg_weight=1,lr=3e-4
    """
    from trainers.errors import ConfigError
    from tuning.runs.journal import is_running
    from tuning.runs.records import trial_name
    from tuning.runs.run_folder import load_run
    from tuning.views.formatting import format_params

    loaded = load_run(run)
    if not is_running(loaded.folder):
        is_over = loaded.history.outcome == "finished"
        hint = f"`lipsum-tune resume {word_for(run)}` continues it"
        raise ConfigError("it has finished" if is_over else "not running", source=run, hint=hint)
    orders: list[tuple[str, dict[str, Any]]] = []
    if stop is not None:
        trial_id = trial_name(int(stop)) if stop.isdecimal() else stop
        running = [r.trial_id for r in loaded.history.records if r.outcome == "running"]
        if trial_id not in running:
            hint = f"running: {', '.join(running) or 'none'}"
            raise ConfigError("no running trial", key="--stop", value=stop, hint=hint)
        orders.append((f"{trial_id} ends within some steps", {"stop": trial_id}))
    if enqueue is not None:
        params = point_of(enqueue, loaded.file.search_space())
        loaded.file.trial_config(params)  # parameters that do not go together
        orders.append((f"next: {format_params(params)}", {"enqueue": params}))
        begun = sum(record.kind != "reference" for record in loaded.history.records)
        if begun >= loaded.file.most_trials:
            more = f"lipsum-tune resume {word_for(run)} --trials +1"
            warn(f"all {begun} trials have begun: the point is tried after `{more}`")
    if end:
        orders.append(("the search ends", {"end": True}))
    if not orders:
        raise ConfigError("give --stop TRIAL, --enqueue POINT or --end")
    from tuning.runs.orders import send

    for text, order in orders:
        send(loaded.folder, order)
        show("Control", text)


def point_of(text: str, space: SearchSpace) -> dict[str, Any]:
    """The parameters of a trial for `reg_weight=1,lr=3e-4`, with all keys of the space.

    Raises:
        ConfigError: a key or a value is not of the space.
    """
    from pydantic import ValidationError

    from search_spaces import SearchSpace
    from trainers.errors import ConfigError, suggestion, validation_problem
    from trainers.overrides import METHOD_KEY
    from trainers.yaml_text import parse_yaml
    from tuning.views.formatting import short_names

    given = dict(pair.partition("=")[::2] for pair in names(text))
    method = given.pop("method", None) if space.branches else None
    if method not in (parts := space.parts()):
        hint = suggestion(method or "", space.branches)
        problem = "needs `method=NAME` with a method of this search"
        raise ConfigError(problem, key="--enqueue", value=text, hint=hint)
    part = parts[method]
    keys = [*part.parameters]
    known = dict(zip(short_names(keys), keys, strict=True)) | dict(zip(keys, keys, strict=True))
    point = {**part.initial_points[0]} if part.initial_points else {}
    for name, written in given.items():
        key = f"--enqueue {name}"
        if name not in known:
            raise ConfigError("not searched", key=key, value=written, hint=suggestion(name, known))
        point[known[name]] = parse_yaml(written, key)
    try:
        checked = SearchSpace(parameters=part.parameters, initial_points=[point])
    except ValidationError as error:
        raise ConfigError(validation_problem(error), key="--enqueue", value=text) from None
    return ({} if method is None else {METHOD_KEY: method}) | checked.initial_points[0]


@app.command()
def config(
    config: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or a ready configuration. Default: a list of these."),
    ] = None,
    set_: Set = None,
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
    elif config is None:
        from tuning.views.overview import configs_table

        Console().print(configs_table())
    else:
        from tuning.config.validation import check_settings, load_config, with_first_rate

        file = load_config(config, set_ or (), check=False)
        check_settings(file)
        file = file.model_copy(update={"trial": with_first_rate(file.trial)})
        print(yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, width=100), end="")
