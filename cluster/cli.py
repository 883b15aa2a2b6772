"""`lipsum-tune`: the commands of `tuning`, and those for clusters."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tuning.cli import app, main
from tuning.cli.options import Config, Set

__all__ = ["app", "main"]


@app.command()
def submit(
    config: Config,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    env: Annotated[
        list[str] | None,
        typer.Option(help="Environment variable to pass to the job. May be repeated."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not follow the job's log to its end.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow plain http to another machine.")
    ] = False,
) -> None:
    """Check a search, then run it as a job of a Ray cluster; the same command resumes it.

    The current directory is uploaded, without data, runs and environments.

    Example: lipsum-tune submit quickstart --address http://127.0.0.1:8265
    """
    from cluster.submit import submit_search

    keys = [*(set_ or ()), *([f"search.name={json.dumps(name)}"] if name else ())]
    raise typer.Exit(submit_search(config, keys, address, env or (), not no_wait, allow_remote))
