"""The commands of `lipsum-tune` that are about weights: what comes after a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tuning.cli.data import Address

app = typer.Typer()


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="A run folder, or the folder that `train --output` wrote.")
    ],
    output: Annotated[Path, typer.Option(help="A new folder, for open_clip's `local-dir:`.")],
    trial: Annotated[
        str | None, typer.Option(help="Default: the one that the objective chooses.")
    ] = None,
    soup: Annotated[
        str | None, typer.Option(help="A soup of the run in its place, such as `greedy`.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="WiSE-FT: 0 is the zero-shot model, 1 the fine-tuned one."),
    ] = None,
) -> None:
    """Write fine-tuned weights as a folder that open_clip loads, with the head beside them."""
    from tuning.weights.export import export as write

    written = write(run, output, trial=trial, soup=soup, alpha=alpha)
    console = Console()
    console.print(f"Exported    {written}", soft_wrap=True, highlight=False)
    line = f'open_clip.create_model_and_transforms("local-dir:{written}")'
    console.print(f"Load with   {line}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def soup(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    top: Annotated[int, typer.Option(help="So many best trials whose weights are kept.")] = 5,
    name: Annotated[
        Literal["uniform", "greedy"],
        typer.Option(help="The mean of all, or of those that do not lower its ID accuracy."),
    ] = "greedy",
    method: Annotated[str | None, typer.Option(help="Only trials of this method.")] = None,
    address: Address = None,
) -> None:
    """Average the weights of a search's best trials, and measure that on the validation splits."""
    from tuning.weights.report import soup_report
    from tuning.weights.soup import make_soup

    finished = make_soup(run, recipe=name, top=top, method=method, address=address)
    console = Console()
    console.print(soup_report(finished))
    console.print(f"Weights     {finished.folder}", soft_wrap=True, highlight=False)
    line = f"lipsum-tune export {run} --soup {name} --output FOLDER"
    console.print(f"Export with {line}", soft_wrap=True, highlight=False, markup=False)
