"""The command `lipsum-tune doctor`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tuning.cli import Set
from tuning.cli_data import Address

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

    Exit status is 1 where there is a fault.
    """
    from trainers.errors import ConfigError
    from tuning.config_file import load_config

    if set_ and config is None:
        raise ConfigError("--set: of which configuration? name it first")
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
