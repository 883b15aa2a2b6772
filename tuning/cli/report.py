"""The command that shows runs: all of them, several side by side, or one with its report."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tuning.cli.options import app, found, shortest, show, warn, word_for


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
    from trainers.errors import ConfigError
    from tuning.runs.run_folder import load_run, places_of_runs, runs_in
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
        from tuning.cli.documents import of_run, plain

        print(json.dumps(plain(of_run(loaded)), allow_nan=False))
        return
    if loaded.history.zero_shot is None and state == "running":
        show("State", "running, evaluating the zero-shot model")
        return
    from tuning.views.leaderboard import report as full_report

    search, records = loaded.search, loaded.history.records
    table = full_report(search, records, console.width, seconds=loaded.history.seconds)
    console.print(table, highlight=False)
    of_jobs = {place.resolve() for place in places_of_runs()[1:]}
    again = f"`lipsum-tune resume {word_for(loaded.folder)}`"
    again = "the same `lipsum-tune submit`" if loaded.folder.parent in of_jobs else again
    show("State", f"killed; {again} continues it" if state == "killed" else state)
    if loaded.history.ended_by:
        show("Ended by", loaded.history.ended_by)
    page = loaded.folder / "report" / "index.html"
    show("Report", shortest(page))
    if state != "running":  # a running search writes all of this itself
        from tuning.views.completion import complete_files, complete_mlflow

        for problem in complete_files(loaded):
            warn(problem)
        show("MLflow", complete_mlflow(loaded))  # uploads the page
    if open_:
        webbrowser.open(page.resolve().as_uri())
