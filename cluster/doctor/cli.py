"""The command `lipsum-tune doctor`."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from tuning.cli import Set
from tuning.cli.data import Address

commands = typer.Typer()


@commands.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Also look at what this configuration needs.")
    ] = None,
    address: Address = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Whether a cluster is ready: versions, GPUs, storage, MLflow, clocks, disks.

    Runs on a node of the cluster. Exit status is 1 where there is a fault.
    """
    from trainers.errors import ConfigError
    from tuning.config.validation import load_config

    if set_ and config is None:
        raise ConfigError("--set: of which configuration? name it first")
    _refuse_dashboard(address)
    file = load_config(config, set_ or (), check=False) if config else None
    from cluster.doctor.examine import examine
    from cluster.doctor.report import as_json, render, worst

    with Console(stderr=True).status("looking at the cluster"):
        diagnosis = examine(file, address=address)
    if json_:
        print(as_json(diagnosis))
    else:
        Console().print(render(diagnosis))
    if worst(diagnosis) == "fault":
        raise typer.Exit(1)


def _refuse_dashboard(address: str | None) -> None:
    """Raise a ConfigError for the address that `submit` takes, which Ray cannot be joined at."""
    from trainers.errors import ConfigError

    said = "--address" if address else "RAY_ADDRESS"
    url = address or os.environ.get("RAY_ADDRESS", "")
    if url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{said} {url}: that is a dashboard; doctor takes HOST:PORT of the head itself (6379 "
            "where no other was chosen), and runs on a node of the cluster (`kubectl exec`, "
            "`ray attach`, `ray exec`)"
        )
