"""The command that serves the report of a run, with MLflow and Optuna's dashboard beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import webbrowser
from contextlib import suppress
from functools import partial
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from tuning.cli.options import found, show

app = typer.Typer()

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
    port: Annotated[
        int, typer.Option(min=1, max=65533, help="Port of the report; the next two are used, too.")
    ] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the report in a browser.")] = True,
) -> None:
    """Serve the report of a run to this machine alone, linked to MLflow and Optuna's dashboard.

    For a folder of runs, serve the run that was written to last.

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
    for number in (port, port + 1, port + 2):
        try:
            socket.create_server((_HOST, number)).close()
        except OSError as error:
            raise ConfigError(system_words(error), key="--port", value=number) from None
    links, servers = dict[str, str](), list[list[str]]()
    recorded = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if recorded and not recorded.startswith("sqlite"):
        links["MLflow"] = redact(recorded)
    elif (folder.parent / "mlflow.db").is_file():
        from tuning.views.mlflow.client import connect, default_tracking_uri, search_run
        from tuning.views.mlflow.view import view_path

        links["MLflow"] = address = f"http://{_HOST}:{port + 1}"
        uri = default_tracking_uri(folder.parent)
        with suppress(ConfigError):  # a search that has just begun has no pages there
            client, experiment = connect(uri, tracking.experiment)
            links["MLflow"] = address + view_path(experiment, loaded.search)
            if whole := search_run(client, experiment, loaded.search.run_id):
                page = f"{address}/#/experiments/{experiment}/runs/{whole.info.run_id}"
                links["Summary"] = page
        # One worker process: each takes 0.5 GB and seconds to start. No line for each request.
        options = ["--backend-store-uri", uri, "--registry-store-uri", uri, "--workers", "1"]
        options += ["--uvicorn-opts", "--log-level warning"]
        options += ["--host", _HOST, "--port", str(port + 1)]
        servers.append([sys.executable, "-m", "mlflow", "server", *options])
    dashboard = Path(sys.executable).with_name("optuna-dashboard")
    study = folder / "optuna.journal"
    if dashboard.is_file() and study.is_file():
        links["Dashboard"] = f"http://{_HOST}:{port + 2}"
        servers.append([str(dashboard), str(study), "--host", _HOST, "--port", str(port + 2)])

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(signum, lambda number, _: sys.exit(128 + number))
    # Ctrl-C reaches this process alone, since MLflow prints a stack trace for it.
    started = [
        subprocess.Popen(s, env=os.environ | _QUIET, stdout=sys.stderr, start_new_session=True)
        for s in servers
    ]
    try:
        pages = partial(_Pages, links, directory=str(folder / "report"))
        with ThreadingHTTPServer((_HOST, port), pages) as server:
            for label, link in {"Report": f"http://{_HOST}:{port}", **links}.items():
                show(label, link)
            # Without a display, Python would open a browser for text in this terminal.
            displays = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
            if browser and (displays or sys.platform in ("darwin", "win32")):
                webbrowser.open(f"http://{_HOST}:{port}")
            server.serve_forever()
    finally:
        for process in started:
            process.terminate()
            process.wait()


class _Pages(SimpleHTTPRequestHandler):
    """The files of a report, whose page begins with links."""

    def __init__(self, links: dict[str, str], *arguments: object, directory: str) -> None:
        self._links = links
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send a file."""
        if self.path not in ("/", "/index.html"):
            super().do_GET()
            return
        page, body = Path(self.directory) / "index.html", "</head><body>"
        text = f'<meta http-equiv="refresh" content="5">{body}The report comes within 30 seconds.'
        with suppress(FileNotFoundError):
            text = page.read_text("utf-8")
        links = " · ".join(f'<a href="{escape(to)}">{name}</a>' for name, to in self._links.items())
        content = text.replace(body, f"{body}<p>{links}</p>", 1).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print no line for each request."""
