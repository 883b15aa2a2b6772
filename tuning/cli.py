"""The command `lipsum-tune`.

Exit status: 0 done; 1 a trial failed; 2 the configuration cannot run; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="lipsum-tune",
    help="Search the hyperparameters of robust fine-tuning (Lipsum-FT) of CLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[str, typer.Argument(help="A YAML file, or a ready one such as `quickstart`.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key, e.g. `trial.steps=500`. May be repeated."),
]


@app.command()
def search(
    config: Config,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; by default RAY_ADDRESS, or a local one.")
    ] = None,
) -> None:
    """Run a search."""
    from tuning.config import load_config
    from tuning.report import leaderboard
    from tuning.search import run_search

    overrides = [*(set_ or ()), *([f"search.name={name}"] if name else ())]
    result = run_search(load_config(config, overrides), address=address)
    console = Console()
    console.print(leaderboard(result.search, result.records, width=console.width))
    console.print(f"Run folder  {result.run_folder}", soft_wrap=True)
    console.print(f"Figure      {result.run_folder / 'report' / 'id_vs_ood.png'}", soft_wrap=True)
    console.print(f"MLflow      lipsum-tune ui {result.run_folder}", soft_wrap=True)
    if result.outcome == "stopped":
        raise typer.Exit(130)
    if result.failed:
        Console(stderr=True).print(f"{len(result.failed)} trial(s) failed", style="red")
        raise typer.Exit(1)


@app.command()
def train(
    config: Config,
    set_: Set = None,
    output: Annotated[Path, typer.Option(help="Folder for the last checkpoint.")] = Path("trained"),
) -> None:
    """Run one trial, no search: the `trial:` section alone, with no Ray."""
    from trainers.data.roots import resolve_root
    from trainers.fine_tune import fine_tune
    from tuning.config import load_config

    trial = load_config(config, set_ or ()).trial
    console = Console()
    resolve_root(trial.data.root, progress=True)
    for report in fine_tune(trial):
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in report.metrics.items()
            if name in ("train/loss", "train/reg") or name.endswith("acc")
        )
        console.print(f"step {report.step}/{trial.steps}  {figures}", soft_wrap=True)
        report.save(output)
    console.print(f"Checkpoint  {output.resolve()}", soft_wrap=True)


@app.command()
def ui(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of all runs.")] = Path(
        "runs"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Open MLflow on a folder of runs, in the browser at http://HOST:PORT."""
    from trainers.errors import ConfigError
    from tuning.mlflow_callback import default_tracking_uri

    runs = run.parent if (run / "search.yaml").is_file() else run
    database = runs.resolve() / "mlflow.db"
    if not database.is_file():
        raise ConfigError(f"{run}: no MLflow database ({database}); run a search first")
    if host not in ("127.0.0.1", "localhost", "::1"):
        Console(stderr=True).print(
            f"[yellow]warning:[/] MLflow asks for no password, and {host} lets others reach it"
        )
    uri = default_tracking_uri(runs.resolve())
    command = ["mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    os.execvpe(sys.executable, [sys.executable, "-m", *command], environment)


def main() -> None:
    """Run the command; a mistake in the configuration is one sentence, not a traceback."""
    from trainers.errors import ConfigError

    try:
        app()
    except ConfigError as error:
        print(f"lipsum-tune: {error}", file=sys.stderr)
        raise SystemExit(2) from None
