"""`lipsum-tune`: the commands of `tuning`, and those for clusters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tuning.cli import app, main
from tuning.cli.options import Config, Set

__all__ = ["app", "main"]

commands = typer.Typer()


@commands.command()
def submit(
    config: Config,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path,
        typer.Option(
            exists=True, file_okay=False, help="Uploaded without data, runs and environments."
        ),
    ] = Path(),
    env: Annotated[
        list[str] | None,
        typer.Option(help="Environment variable to pass to the job. May be repeated."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job's logs to its end.")
    ] = True,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow plain http to another machine.")
    ] = False,
) -> None:
    """Run a search as a job of a Ray cluster; the same command resumes it after a failure.

    With --wait the exit status is that of the search.

    Example: lipsum-tune submit quickstart --address http://127.0.0.1:8265
    """
    from cluster.submit import follow, submit_search

    named = [f"search.name={json.dumps(name)}"] if name else []
    keys = [*(set_ or ()), *named]
    job = submit_search(config, keys, working_dir, address, env or (), allow_remote)
    print(*job.description(), sep="\n", file=sys.stderr)
    if wait:
        raise typer.Exit(follow(job))


app.add_typer(commands)
