"""The command `lipsum-tune`.

Exit status: 0 done; 1 a trial failed, a preparation was refused or a zero-shot figure is off; 2 the
configuration cannot run; 75 storage failed, and the same command may go on later; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tuning.cli.data import Address
from tuning.cli.data import app as data_commands
from tuning.cli.weights import app as weights_commands

if TYPE_CHECKING:
    from tuning.execution.run_search import SearchResult

app = typer.Typer(
    name="lipsum-tune",
    help="Search the hyperparameters of robust fine-tuning (Lipsum-FT) of CLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_commands)
app.add_typer(weights_commands)

Config = Annotated[str, typer.Argument(help="A YAML file, or a ready one such as `quickstart`.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key, e.g. `trial.steps=500`. May be repeated."),
]
Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]

STORAGE_FAILED = 75
"""EX_TEMPFAIL of sysexits.h: what failed is not what was asked for, so it may be asked again."""


@app.command()
def search(
    config: Config,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run of this name and configuration, if there is one."
        ),
    ] = False,
    allow_failed_trials: Annotated[
        bool,
        typer.Option(
            "--allow-failed-trials",
            help="Exit with 0 where trials failed, if any has finished: for what tries again.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """Run a search."""
    from tuning.config.validation import load_config

    overrides = [*(set_ or ()), *([f"search.name={name}"] if name else ())]
    file = load_config(config, overrides)
    # After the check: Ray and MLflow take seconds to import.
    from tuning.execution.run_search import run_search
    from tuning.runs.resume import search_or_resume

    result = (search_or_resume if resume else run_search)(file, address=address)
    _show(result, allow_failed_trials)


@app.command("resume")
def resume_run(run: Run, set_: Set = None, address: Address = None) -> None:
    """Go on with a search after any interruption; budgets, resources and data.root may change."""
    from tuning.runs.resume import resume_search

    _show(resume_search(run, set_ or (), address=address))


@app.command()
def extend(
    run: Run,
    trials: Annotated[
        int | None, typer.Option(min=1, help="This many more than there are.")
    ] = None,
    set_: Set = None,
    address: Address = None,
) -> None:
    """Give a search more trials, or another space, sampler or scheduler."""
    from tuning.runs.resume import resume_search
    from tuning.runs.run_folder import load_run

    overrides = list(set_ or ())
    if trials is not None:
        loaded = load_run(run)
        there = sum(record.kind == "trial" for record in loaded.history.records)
        wanted = max(there, loaded.file.search.budget.trials) + trials
        overrides.append(f"search.budget.trials={wanted}")
    _show(resume_search(run, overrides, extend=True, address=address))


@app.command()
def plan(config: Config, set_: Set = None, address: Address = None) -> None:
    """What a search will cost, before it starts: a short probe, then an estimate."""
    from tuning.config.validation import load_config

    file = load_config(config, set_ or ())
    from tuning.planning.plan import check_budget, plan_search
    from tuning.planning.report import render

    console = Console()
    planned = plan_search(file, address=address)
    console.print(render(planned, console.width))
    check_budget(planned)


@app.command()
def status(run: Run) -> None:
    """What a search has done so far; it may be running."""
    from tuning.reporting.leaderboard import report as full_report
    from tuning.runs.journal import is_running
    from tuning.runs.run_folder import load_run

    loaded = load_run(run)
    console = Console()
    console.print(full_report(loaded.search, loaded.history.records, width=console.width))
    state = "running" if is_running(run) else loaded.history.outcome or "killed; resume it"
    console.print(f"State       {state}")


@app.command()
def report(run: Run) -> None:
    """Write tables, figures and what MLflow lacks of a run folder, and print the leaderboard."""
    from tuning.mlflow_logging.callback import backfill
    from tuning.mlflow_logging.client import TrackingError
    from tuning.reporting.leaderboard import figures
    from tuning.reporting.tables.trials import write_tables
    from tuning.runs.journal import is_running
    from tuning.runs.run_folder import load_run

    loaded = load_run(run)
    write_tables(loaded.folder, loaded.search, loaded.history.records)
    figures(loaded.search, loaded.history.records, loaded.folder)
    status(run)
    if not is_running(run):  # else its driver does it
        try:
            Console().print(f"MLflow      {backfill(loaded)}", soft_wrap=True, highlight=False)
        except TrackingError as error:
            Console(stderr=True).print(f"[yellow]warning:[/] {escape(str(error))}", soft_wrap=True)


@app.command()
def confirm(
    run: Run,
    top: Annotated[int, typer.Option(help="So many best by the objective.")] = 1,
    seeds: Annotated[int, typer.Option(help="Fresh seeds, the same for all.")] = 5,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Only what this rule chose; may be repeated. Default: all but pareto."),
    ] = None,
    address: Address = None,
) -> None:
    """Train what was chosen again on fresh seeds, then read the test splits, once.

    Every distinct choice of the selection rules is trained, plain fine-tuning beside them.
    """
    from tuning.confirmation.confirm import confirm as confirm_choices
    from tuning.confirmation.report import report as full_report

    found = confirm_choices(run, top=top, seeds=seeds, rules=rule or (), address=address)
    console = Console()
    console.print(full_report(found, console.width))
    if found.failed:
        raise typer.Exit(1)


@app.command()
def train(
    config: Config,
    set_: Set = None,
    output: Annotated[Path, typer.Option(help="Folder for the last checkpoint.")] = Path("trained"),
) -> None:
    """Run one trial, no search: the `trial:` section alone, with no Ray."""
    from trainers.data.data_root import resolve_root
    from trainers.fine_tune import fine_tune
    from tuning.config.validation import load_trial
    from tuning.weights.sources import write_trial

    trial = load_trial(config, set_ or ())
    console = Console()
    resolve_root(trial.data.root, progress=True)
    for report in fine_tune(trial):
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in report.metrics.items()
            if name in ("train/loss", "train/reg") or name.endswith(("/acc", "/mean_acc"))
        )
        console.print(f"step {report.step}/{trial.steps}  {figures}", soft_wrap=True)
        report.save(output)
        write_trial(output, trial)
    console.print(f"Checkpoint  {output.resolve()}", soft_wrap=True)


@app.command()
def ui(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of all runs.")] = Path(
        "runs"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Also on an address that others can reach.")
    ] = False,
) -> None:
    """Open MLflow on a folder of runs, in the browser at http://HOST:PORT."""
    from trainers.errors import ConfigError
    from tuning.mlflow_logging.client import default_tracking_uri
    from tuning.security.exposure import check_listens

    if risk := check_listens(host, "MLflow", allow_remote):
        Console(stderr=True).print(f"[yellow]warning:[/] {risk}")
    runs = run.parent if (run / "search.yaml").is_file() else run
    database = runs.resolve() / "mlflow.db"
    if not database.is_file():
        raise ConfigError(f"{run}: no MLflow database ({database}); run a search first")
    uri = default_tracking_uri(runs.resolve())
    command = ["mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    os.execvpe(sys.executable, [sys.executable, "-m", *command], environment)


def _show(result: SearchResult, allow_failed_trials: bool = False) -> None:
    """Print what a search found, and exit with the status that says how it ended."""
    from trainers.checkpoints.format import WEIGHTS
    from trainers.data.storage import open_store
    from trainers.errors import ConfigError
    from tuning.checkpoints.files import kept_checkpoint
    from tuning.mlflow_logging.client import default_tracking_uri, redact
    from tuning.reporting.leaderboard import report as full_report

    console = Console()
    console.print(full_report(result.search, result.records, width=console.width))
    if result.ended_by:
        console.print(f"Ended by    {result.ended_by}", soft_wrap=True)
    console.print(f"Run folder  {result.run_folder}", soft_wrap=True)
    console.print(f"Figure      {result.run_folder / 'report' / 'id_vs_ood.png'}", soft_wrap=True)
    if result.best and result.checkpoints:
        kept = kept_checkpoint(open_store(result.checkpoints), result.best.trial_id)
        if kept is not None:
            console.print(f"Weights     {kept.url}/{WEIGHTS}", soft_wrap=True)
    is_local = result.tracking_uri == default_tracking_uri(result.run_folder.parent)
    where = f"lipsum-tune ui {result.run_folder}" if is_local else redact(result.tracking_uri)
    console.print(f"MLflow      {where}", soft_wrap=True, highlight=False)
    finished = [record for record in result.records if record.outcome == "finished"]
    if result.ended_by and not finished:
        raise ConfigError(f"{result.ended_by}, and no trial has finished; resume it with more")
    if result.outcome == "stopped":
        console.print(f"Go on with  lipsum-tune resume {result.run_folder}", soft_wrap=True)
        raise typer.Exit(130)
    if result.failed:
        Console(stderr=True).print(f"{len(result.failed)} trial(s) failed", style="red")
        if not (allow_failed_trials and any(record.kind == "trial" for record in finished)):
            raise typer.Exit(1)


def main() -> None:
    """Run the command; a mistake, or a disk that is full, is one sentence, not a traceback."""
    from trainers.errors import FULL, ConfigError, StorageFailed

    try:
        app()
    except (ConfigError, StorageFailed) as error:
        print(f"lipsum-tune: {error}", file=sys.stderr)
        status = 2 if isinstance(error, ConfigError) else STORAGE_FAILED
        raise SystemExit(status) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"lipsum-tune: {error}", file=sys.stderr)
        raise SystemExit(STORAGE_FAILED) from None
