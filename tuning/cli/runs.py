"""Commands on runs: `report` shows them, `ui` serves their pages, `control` steers a running one.

`config` shows configurations.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic_core import to_jsonable_python
from rich.console import Console

from tuning.cli.options import Run, Set, app, found, names, shortest, show, warn

if TYPE_CHECKING:
    from search_spaces.space import Spaces

_HOST = "127.0.0.1"
_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@app.command()
def report(
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            callback=lambda runs: [found(run) for run in runs or ()],
            help="A run folder, or the name of one in runs/; several are shown side by side. "
            "Default: a list of all.",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one run as JSON, and write nothing.")
    ] = False,
) -> None:
    """Show the trials of a run, which may be running; write its tables and report, complete MLflow.

    Example: lipsum-tune report quickstart --open
    """
    from trainers.errors import MAY_CONTINUE, ConfigError
    from tuning.log.folder import places_of_runs, runs_in, word_for
    from tuning.log.paths import page_path
    from tuning.run import load_run
    from tuning.views.overview import comparison, runs_table, state_of

    console = Console()
    if as_json and len(run or ()) != 1:
        raise ConfigError("is for one run", key="--json")
    if not run:
        folders = [folder for place in places_of_runs() for folder in runs_in(place)]
        console.print(runs_table(folders))
        return
    if len(run) > 1:
        console.print(comparison(run))
        return
    loaded = load_run(run[0])
    state = state_of(loaded)
    if as_json:
        from tuning.cli.documents import of_run

        document = to_jsonable_python(of_run(loaded), inf_nan_mode="null")
        print(json.dumps(document, allow_nan=False))
        return
    if loaded.history.zero_shot is None and state == "running":
        show("State", "running, evaluating the zero-shot model")
        return
    from tuning.views.leaderboard import report as full_report

    table = full_report(loaded, console.width, seconds=loaded.history.seconds)
    console.print(table, highlight=False)
    of_jobs = {place.resolve() for place in places_of_runs()[1:]}
    again = f"`lipsum-tune resume {word_for(loaded.folder)}`"
    again = "the same `lipsum-tune submit`" if loaded.folder.parent in of_jobs else again
    show("State", f"killed; {again} continues it" if state == "killed" else state)
    if loaded.history.ended_by:
        show("Ended by", loaded.history.ended_by)
    page = page_path(loaded.folder)
    show("Report", shortest(page))
    problems = list[str]()
    if state != "running":  # a running search writes all of this itself
        from tuning.views.completion import complete_files, complete_mlflow

        problems = complete_files(loaded)
        for problem in problems:
            warn(problem)
        show("MLflow", complete_mlflow(loaded))  # uploads the page
    if open_:
        webbrowser.open(page.resolve().as_uri())
    if problems:
        raise typer.Exit(MAY_CONTINUE)


@app.command()
def ui(
    run: Annotated[
        Path,
        typer.Argument(callback=found, help="A run folder, its name, or the folder of all runs."),
    ] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the report in a browser.")] = True,
) -> None:
    """Open the report of a run, and serve its MLflow pages to this machine alone.

    For a folder of runs, take the run that was written to last.

    Example: lipsum-tune ui quickstart --port 5001
    """
    from trainers.errors import ConfigError, system_words
    from trainers.redact import redact
    from tuning.log.folder import runs_in
    from tuning.log.paths import CONFIG_FILE, page_path
    from tuning.run import load_run

    if not (run / CONFIG_FILE).is_file():
        run = next(iter(runs_in(run)), run)
        if not (run / CONFIG_FILE).is_file():
            raise ConfigError("no runs", hint="run a search first", source=run)
    loaded = load_run(run)
    folder, tracking = loaded.folder, loaded.file.search.tracking
    page = page_path(folder).resolve().as_uri()
    links = {"Report": page}
    server = list[str]()
    recorded = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if recorded and not recorded.startswith("sqlite"):
        links["MLflow"] = redact(recorded)
    elif (folder.parent / "mlflow.db").is_file():
        from tuning.views.mlflow.client import connect, default_tracking_uri, search_run
        from tuning.views.mlflow.shared_view import summary_path, view_path

        try:
            socket.create_server((_HOST, port)).close()
        except OSError as error:
            raise ConfigError(system_words(error), key="--port", value=port) from None
        links["MLflow"] = address = f"http://{_HOST}:{port}"
        uri = default_tracking_uri(folder.parent)
        with suppress(ConfigError):  # a search that has just begun has no pages there
            client, experiment = connect(uri, tracking.experiment)
            links["MLflow"] = address + view_path(experiment, loaded)
            if whole := search_run(client, experiment, loaded.history.run_id):
                links["Summary"] = address + summary_path(experiment, whole)
        # One worker process: each takes 0.5 GB and seconds to start. No line for each request.
        options = ["--backend-store-uri", uri, "--registry-store-uri", uri, "--workers", "1"]
        options += ["--uvicorn-opts", "--log-level warning"]
        options += ["--host", _HOST, "--port", str(port)]
        server = [sys.executable, "-m", "mlflow", "server", *options]
    study = loaded.file.search.study_storage
    # The shell replaces the ${NAME} of a password within double quotes.
    study = f'"{study}"' if study else shlex.quote(str(shortest(folder / "optuna.journal")))
    links["Dashboard"] = f"optuna-dashboard --host {_HOST} {study}"
    for label, link in links.items():
        show(label, link)
    # Without a display, Python would open a browser for text in this terminal.
    displays = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if browser and (displays or sys.platform in ("darwin", "win32")):
        webbrowser.open(page)
    if not server:
        return

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(signum, lambda number, _: sys.exit(128 + number))
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        """Let Linux end this process with its parent, even if that is killed."""
        with suppress(AttributeError):  # other systems
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    # Ctrl-C reaches this process alone, since MLflow prints a stack trace for it.
    process = subprocess.Popen(
        server,
        env=os.environ | _QUIET,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        raise typer.Exit(process.wait())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        process.terminate()
        process.wait()


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
    """Steer a running search: it follows within seconds, also from another machine.

    Example: lipsum-tune control quickstart --enqueue reg_weight=1,lr=3e-4
    """
    from trainers.errors import ConfigError
    from tuning.log.folder import word_for
    from tuning.log.journal import is_running
    from tuning.log.records import trial_name
    from tuning.results.budget import num_begun
    from tuning.run import load_run
    from tuning.views.formatting import format_params

    loaded = load_run(run)
    if not is_running(loaded.folder):
        is_over = loaded.history.outcome == "finished"
        hint = f"`lipsum-tune resume {word_for(run)}` continues it"
        raise ConfigError("it has finished" if is_over else "not running", source=run, hint=hint)
    orders: list[tuple[str, dict[str, Any]]] = []
    if stop is not None:
        trial_id = trial_name(int(stop)) if stop.isdecimal() else stop
        running = [r.trial_id for r in loaded.records if r.outcome == "running"]
        if trial_id not in running:
            hint = f"running: {', '.join(running) or 'none'}"
            raise ConfigError("no running trial", key="--stop", value=stop, hint=hint)
        orders.append((f"{trial_id} ends within some steps", {"stop": trial_id}))
    if enqueue is not None:
        params = point_of(enqueue, loaded.file.spaces)
        loaded.file.trial_config(params)  # parameters that do not go together
        orders.append((f"next: {format_params(params)}", {"enqueue": params}))
        begun = num_begun(loaded.records)
        if begun >= loaded.file.most_trials:
            more = f"lipsum-tune resume {word_for(run)} --trials +1"
            warn(f"all {begun} trials have begun: the point is tried after `{more}`")
    if end:
        orders.append(("the search ends", {"end": True}))
    if not orders:
        raise ConfigError("give --stop TRIAL, --enqueue POINT or --end")
    from tuning.log.orders import send

    for text, order in orders:
        send(loaded.folder, order)
        show("Control", text)


def point_of(text: str, spaces: Spaces) -> dict[str, Any]:
    """The parameters of a trial for `reg_weight=1,lr=3e-4`, with all keys of its space."""
    from pydantic import ValidationError

    from search_spaces import SearchSpace
    from trainers.errors import ConfigError, suggestion, validation_problem
    from trainers.overrides import METHOD_KEY
    from trainers.yaml_text import parse_yaml
    from tuning.views.formatting import short_names

    given = dict(pair.partition("=")[::2] for pair in names(text))
    method = None if None in spaces else given.pop("method", None)
    if method not in spaces:
        hint = suggestion(method or "", map(str, spaces))
        problem = "needs `method=NAME` with a method of this search"
        raise ConfigError(problem, key="--enqueue", value=text, hint=hint)
    part = spaces[method]
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

        document = SearchFile.model_json_schema()
        document["properties"]["extends"] = {  # it is resolved before the rest is validated
            "type": "string",
            "description": "A ready configuration, or the path of a file, that this one changes.",
        }
        document["properties"]["version"] = {"description": "Of lipsum-tune, in a run folder."}
        # With anyOf in place of oneOf, since a change of a parameter may look like a whole one.
        print(json.dumps(document, indent=2).replace('"oneOf":', '"anyOf":'))
    elif config is None:
        from tuning.views.overview import configs_table

        Console().print(configs_table())
    else:
        from tuning.config.validation import load_settings, with_first_rate

        file = load_settings(config, set_ or ())
        file = file.model_copy(update={"trial": with_first_rate(file.trial)})
        print(yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, width=100), end="")
