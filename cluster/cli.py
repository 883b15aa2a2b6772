"""`lipsum-tune` whole: the commands of `tuning`, and those that are about clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.doctor.cli import commands as doctor_commands
from tuning.cli import Config, Set, app, main

__all__ = ["app", "main"]

commands = typer.Typer()


@commands.command()
def submit(
    config: Config,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="What the job sees, less data, runs and environments.")
    ] = Path(),
    env: Annotated[
        list[str] | None,
        typer.Option(help="Take this variable of the environment along. May be repeated."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job's logs to its end.")
    ] = True,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Also over plain http to another machine.")
    ] = False,
) -> None:
    """Run a search as a job of a Ray cluster; submitted again, it goes on where it was.

    With --wait the exit status is that of the search.
    """
    from cluster.submit import JobRequest, submit_search

    overrides = [*(set_ or ()), *([f"search.name={name}"] if name else ())]
    request = JobRequest(config, tuple(overrides), working_dir, tuple(env or ()))
    job = submit_search(request, address, allow_remote=allow_remote)
    console = Console(stderr=True)
    for line in job.description():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if wait:
        from cluster.follow import follow

        raise typer.Exit(follow(job, console))


app.add_typer(commands)
app.add_typer(doctor_commands)
