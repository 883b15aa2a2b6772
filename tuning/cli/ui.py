"""The command that serves MLflow for a folder of runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tuning.cli.options import found, show

app = typer.Typer()

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
"""Time for the server to answer; seconds on an idle machine."""


@app.command()
def ui(
    run: Annotated[
        Path,
        typer.Argument(callback=found, help="A run folder, its name, or the folder of all runs."),
    ] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Serve MLflow for a folder of runs to this machine alone, and open the page of a search.

    Example: lipsum-tune ui quickstart --port 5001
    """
    from trainers.errors import ConfigError, system_words
    from trainers.redact import redact
    from tuning.config.validation import load_config
    from tuning.runs.run_folder import CONFIG_FILE, load_run, runs_in

    runs = run.resolve()
    is_run = (runs / CONFIG_FILE).is_file()
    runs = runs.parent if is_run else runs
    database = runs / "mlflow.db"
    if not database.is_file():
        recorded = os.environ.get("MLFLOW_TRACKING_URI")
        for folder in [run] if is_run else runs_in(runs)[:1]:
            with suppress(ConfigError):
                file = load_config(folder / CONFIG_FILE, check=False)
                recorded = file.search.tracking.uri or recorded
        hint = f"searches are recorded at {redact(recorded)}" if recorded else "run a search first"
        raise ConfigError(f"no MLflow database ({database})", hint=hint, source=run)
    # MLflow ends with status 0 if the port is in use.
    try:
        socket.create_server((_HOST, port)).close()
    except OSError as error:
        raise ConfigError(system_words(error), key="--port", value=port) from None

    from tuning.views.mlflow.client import connect, default_tracking_uri
    from tuning.views.mlflow.view import view_path

    uri, page = default_tracking_uri(runs), ""
    for folder in [run] if is_run else runs_in(runs):
        with suppress(ConfigError):  # a search that has just begun, or a damaged folder, has none
            shown = load_run(folder)
            _, experiment_id = connect(uri, shown.file.search.tracking.experiment)
            page = view_path(experiment_id, shown.search)
            break
    address = f"http://{_HOST}:{port}"
    # One worker process: each takes 0.5 GB and seconds to start.
    options = ["--backend-store-uri", uri, "--host", _HOST, "--port", str(port), "--workers", "1"]
    options += ["--uvicorn-opts", "--log-level warning"]  # no line for each request
    options += ["--registry-store-uri", uri]  # otherwise MLflow prints that it is this one
    settings = os.environ | {
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    show("Starting", f"MLflow for {runs}")  # MLflow prints a line about its security next
    # Ctrl-C reaches this process alone, since the server prints a stack trace for it.
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        env=settings,
        start_new_session=True,
    )
    try:
        if _answers(address, server):
            show("MLflow", f"{address}{page}")
            has_display = sys.platform in ("darwin", "win32") or os.environ.keys() & {
                "DISPLAY",
                "WAYLAND_DISPLAY",
            }
            # Without a display, Python would open a browser for text in this terminal.
            if browser and has_display:
                webbrowser.open(f"{address}{page}")
        raise typer.Exit(server.wait())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        server.terminate()
        server.wait()


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False if it has ended."""
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.1)
    return False
