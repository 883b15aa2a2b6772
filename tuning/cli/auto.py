"""The command that does everything: `auto`."""

from __future__ import annotations

from typing import Annotated

import typer

from trainers.errors import ConfigError
from tuning.cli.options import Address, names, warn

app = typer.Typer()


@app.command()
def auto(
    data: Annotated[
        str | None,
        typer.Argument(help="A folder of images, as for `prepare folders`. Default: openmoji."),
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", help="The domain to fine-tune on.")] = None,
    ood: Annotated[
        str | None, typer.Option(help="The other domains, comma-separated. Default: all but --id.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A ready configuration or YAML file to extend. Default: vit_b32."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Wall-clock time of everything. Default of openmoji: 0.2.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="GPU-hours of the search and `confirm`.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder. Default: that of DATA.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Confirm another trial than before, for instance a better one after `resume`.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """From a folder of images to a confirmed, exported model; run it again after a kill.

    Prepares, plans and runs a search that fits the hours, confirms and exports the model that won.

    Example: lipsum-tune auto /data/shop --id studio --ood street,sketch --gpu-hours 24
    """
    if data is not None and (hours is None) == (gpu_hours is None):
        raise ConfigError("give one of --hours (wall clock) and --gpu-hours")
    # Imported here, since torch, Ray and MLflow take seconds to import.
    from tuning.auto import auto as run_auto
    from tuning.runs.errors import resumable

    try:
        with resumable("the same command goes on"):
            run_auto(
                data, id_domain=id_, ood=names(ood), model=model, hours=hours,
                gpu_hours=gpu_hours, name=name, again=again, address=address,
            )  # fmt: skip
    except KeyboardInterrupt:
        warn("stopped; the same command goes on")
        raise typer.Exit(130) from None
