"""Arguments and options that several commands share, and how commands print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="lipsum-tune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""All commands, which the modules of this package and `cluster.cli` add."""

Config = Annotated[
    str, typer.Argument(help="A YAML file, or a ready configuration such as `quickstart`.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key, e.g. `trial.steps=500`. May be repeated."),
]


def found(run: Path) -> Path:
    """The run folder that the user means. Called for the argument of a command."""
    from tuning.log.folder import find_run

    return find_run(run)


Run = Annotated[
    Path,
    typer.Argument(callback=found, help="A run folder, or the name of one in runs/."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster. Default: RAY_ADDRESS, or a local Ray."),
]


def show(label: str, *values: object) -> None:
    """Print lines of results, the label before the first.

    Not with rich, which takes `[` in a path for markup.
    """
    for value in values:
        print(f"{label:<11} {value}", flush=True)
        label = ""


def shortest(path: Path) -> Path:
    """Relative to the current directory, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def warn(problem: object) -> None:
    """Print a warning on standard error."""
    print(f"warning: {problem}", file=sys.stderr)


def names(listed: str | None) -> tuple[str, ...]:
    """The names in a comma-separated option."""
    return tuple(name.strip() for name in (listed or "").split(",") if name.strip())
