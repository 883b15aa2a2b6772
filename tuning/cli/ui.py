"""The command that opens the report of a run and serves its MLflow pages."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tuning.cli.options import app, found, shortest, show

_HOST = "127.0.0.1"
_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@app.command()
def ui(
    run: Annotated[
        Path,
        typer.Argument(callback=found, help="A run folder, its name, or the folder of all runs."),
    ] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the report in a browser.")] = True,
) -> None:
    """Open the report of a run, and serve its MLflow pages to this machine alone.

    For a folder of runs, take the run that was written to last.

    Example: lipsum-tune ui quickstart --port 5001
    """
    from trainers.errors import ConfigError, system_words
    from trainers.redact import redact
    from tuning.runs.run_folder import CONFIG_FILE, load_run, runs_in

    if not (run / CONFIG_FILE).is_file():
        run = next(iter(runs_in(run)), run)
        if not (run / CONFIG_FILE).is_file():
            raise ConfigError("no runs", hint="run a search first", source=run)
    loaded = load_run(run)
    folder, tracking = loaded.folder, loaded.file.search.tracking
    page = (folder / "report" / "index.html").resolve().as_uri()
    links, server = {"Report": page}, list[str]()
    recorded = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if recorded and not recorded.startswith("sqlite"):
        links["MLflow"] = redact(recorded)
    elif (folder.parent / "mlflow.db").is_file():
        from tuning.views.mlflow.client import connect, default_tracking_uri, search_run
        from tuning.views.mlflow.shared_view import summary_path, view_path

        try:
            socket.create_server((_HOST, port)).close()
        except OSError as error:
            raise ConfigError(system_words(error), key="--port", value=port) from None
        links["MLflow"] = address = f"http://{_HOST}:{port}"
        uri = default_tracking_uri(folder.parent)
        with suppress(ConfigError):  # a search that has just begun has no pages there
            client, experiment = connect(uri, tracking.experiment)
            links["MLflow"] = address + view_path(experiment, loaded.search)
            if whole := search_run(client, experiment, loaded.search.run_id):
                links["Summary"] = address + summary_path(experiment, whole)
        # One worker process: each takes 0.5 GB and seconds to start. No line for each request.
        options = ["--backend-store-uri", uri, "--registry-store-uri", uri, "--workers", "1"]
        options += ["--uvicorn-opts", "--log-level warning"]
        options += ["--host", _HOST, "--port", str(port)]
        server = [sys.executable, "-m", "mlflow", "server", *options]
    study = loaded.file.search.study_storage
    # The shell replaces the ${NAME} of a password within double quotes.
    study = f'"{study}"' if study else shlex.quote(str(shortest(folder / "optuna.journal")))
    links["Dashboard"] = f"optuna-dashboard --host {_HOST} {study}"
    for label, link in links.items():
        show(label, link)
    # Without a display, Python would open a browser for text in this terminal.
    displays = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if browser and (displays or sys.platform in ("darwin", "win32")):
        webbrowser.open(page)
    if not server:
        return

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(signum, lambda number, _: sys.exit(128 + number))
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        """Let Linux end this process with its parent, even if that is killed."""
        with suppress(AttributeError):  # other systems
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    # Ctrl-C reaches this process alone, since MLflow prints a stack trace for it.
    process = subprocess.Popen(
        server,
        env=os.environ | _QUIET,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        raise typer.Exit(process.wait())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        process.terminate()
        process.wait()
