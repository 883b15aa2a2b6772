"""Arguments and options that several commands share, and how commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    str, typer.Argument(help="A YAML file, or a ready configuration such as `quickstart`.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key, e.g. `trial.steps=500`. May be repeated."),
]
Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster. Default: RAY_ADDRESS, or a local Ray."),
]


def show(label: str, value: object) -> None:
    """Print one line of results. Not with rich, which takes `[` in a path for markup."""
    print(f"{label:<11} {value}", flush=True)


def warn(problem: object) -> None:
    """Print a warning on standard error."""
    print(f"warning: {problem}", file=sys.stderr)


def check_run(run: Path, overrides: Sequence[str] = ()) -> None:
    """Report mistakes in a run folder or a key before Ray and torch are imported."""
    from tuning.config.validation import load_config
    from tuning.runs.run_folder import CONFIG_FILE, load_run

    load_config(load_run(run).folder / CONFIG_FILE, overrides, check=False)


def names(listed: str | None) -> tuple[str, ...]:
    """The names in a comma-separated option."""
    return tuple(name.strip() for name in (listed or "").split(",") if name.strip())
