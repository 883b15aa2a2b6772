"""`lipsum-tune`: the commands of `tuning`, and those for clusters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tuning.cli import Config, Set, app, main
from tuning.cli.options import Address

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
        Path, typer.Option(help="Folder that is uploaded, without data, runs and environments.")
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
    from cluster.submit import submit_search

    overrides = [*(set_ or ()), *([f"search.name={json.dumps(name)}"] if name else ())]
    job = submit_search(
        config, overrides, working_dir, address, environment=env or (), allow_remote=allow_remote
    )
    console = Console(stderr=True)
    for line in job.description():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if wait:
        from cluster.follow import follow

        raise typer.Exit(follow(job, console))


@commands.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Also check whether this configuration can run.")
    ] = None,
    address: Address = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a cluster: versions, GPUs, memory, disks, storage, MLflow.

    Run it on a node of the cluster. The exit status is 1 if there is a fault.

    Example: lipsum-tune doctor quickstart --address auto
    """
    from trainers.errors import ConfigError
    from tuning.config.validation import load_config

    if set_ and config is None:
        raise ConfigError("needs a configuration to override", key="--set")
    url = address or os.environ.get("RAY_ADDRESS", "")
    if url.startswith(("http://", "https://")):
        raise ConfigError(
            "this is a dashboard; doctor takes HOST:PORT of the head (port 6379 by default)",
            key="--address" if address else "RAY_ADDRESS",
            value=url,
            hint="run it on a node of the cluster: `kubectl exec`, `ray attach` or `ray exec`",
        )
    file = load_config(config, set_ or (), check=False) if config else None
    from cluster.doctor.examine import as_json, examine, render

    with Console(stderr=True).status("examining the cluster"):
        diagnosis = examine(file, address=address)
    if json_:
        print(as_json(diagnosis))
    else:
        Console().print(render(diagnosis))
    if diagnosis.count("fault"):
        raise typer.Exit(1)


app.add_typer(commands)
