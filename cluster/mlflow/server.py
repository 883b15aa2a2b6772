"""`python -m cluster.mlflow`: MLflow's own server, with the settings that a shared one needs.

The database's URL, which may hold a password, comes from the environment or a file, never from the
command line, which `ps` shows to everybody. Telemetry and job execution are off. The server listens
on this machine alone unless told otherwise, for MLflow asks nobody for a password by itself.

SIGTERM and Ctrl-C end it in order: requests are answered first.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster.mlflow.database import check_database, upgrade_database
from trainers.errors import ConfigError
from tuning.security.exposure import ALLOW_REMOTE, is_loopback

URI_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class ServerOptions:
    """What the command line says."""

    artifacts: str
    """A folder, or a bucket as `s3://bucket/folder`."""
    port: int = 5000
    workers: int = 4
    host: str = LOCALHOST
    """The interface to listen on."""
    names: tuple[str, ...] = ()
    """Under which browsers and searches reach it, where that is not an address of its own."""
    basic_auth: bool = False

    @property
    def is_remote(self) -> bool:
        """Whether other machines can reach it."""
        return not is_loopback(self.host)


def backend_store_uri(environment: Mapping[str, str], file: Path | None) -> str:
    """The database's URL, `${NAME}` in it filled in.

    Args:
        environment: holds it as MLFLOW_BACKEND_STORE_URI, where no file does.
        file: holds it, in one line.

    Raises:
        ConfigError: neither does.
    """
    if file is None:
        uri = environment.get(URI_VARIABLE, "")
    else:
        try:
            uri = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--backend-store-uri-file {file}: {error.strerror}") from None
    if not uri.strip():
        where = f"--backend-store-uri-file {file}" if file else URI_VARIABLE
        raise ConfigError(
            f"{where} is empty; it says which database, such as "
            "postgresql+psycopg://mlflow@127.0.0.1/mlflow, with the password in PGPASSWORD"
        )
    return os.path.expandvars(uri.strip())


def command(options: ServerOptions) -> list[str]:
    """MLflow's command line, which holds no secret."""
    arguments = ["mlflow", "server", "--host", options.host]
    arguments += ["--port", str(options.port), "--workers", str(options.workers)]
    arguments += ["--serve-artifacts", "--artifacts-destination", options.artifacts]
    names = [*options.names, *([options.host] if options.is_remote else [])]
    names = [name for name in names if not _stands_for_all(name)]
    if names:
        # The first is against DNS rebinding; MLflow's own page needs the second to search at all.
        local = ["localhost", "localhost:*", LOCALHOST, f"{LOCALHOST}:*"]
        hosts = [*local, *(host for name in names for host in (name, f"{name}:*"))]
        origins = [f"{s}://{n}{p}" for n in names for s in ("http", "https") for p in ("", ":*")]
        arguments += ["--allowed-hosts", ",".join(hosts)]
        arguments += ["--cors-allowed-origins", ",".join(origins)]
    if options.basic_auth:
        arguments += ["--app-name", "basic-auth"]
    return arguments


def settings(uri: str) -> dict[str, str]:
    """What MLflow's server is told by its environment."""
    return {
        URI_VARIABLE: uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four processes more, for nobody here
    }


def check_basic_auth(environment: Mapping[str, str]) -> None:
    """Raise a ConfigError where MLflow's password check lacks something."""
    if importlib.util.find_spec("flask_wtf") is None:
        raise ConfigError("--basic-auth: flask_wtf is not installed; `pip install 'mlflow[auth]'`")
    if not environment.get("MLFLOW_FLASK_SERVER_SECRET_KEY"):
        raise ConfigError(
            "--basic-auth: set MLFLOW_FLASK_SERVER_SECRET_KEY to a long random text, and "
            "MLFLOW_AUTH_ADMIN_PASSWORD to the first password of the user `admin`"
        )


def warning(options: ServerOptions) -> str | None:
    """What whoever opens the server to others should know."""
    if not options.is_remote:
        return None
    if options.basic_auth:
        return (
            f"{options.host} lets other machines reach this server. Passwords and records cross "
            "the network in plain text: put a proxy with TLS before it."
        )
    return (
        f"{options.host} lets other machines reach this server, and MLflow asks for no password: "
        "whoever reaches the port reads, changes and deletes every record and every artifact. "
        "Keep the port behind a firewall, or give --basic-auth and put a proxy with TLS before it."
    )


def run(
    artifacts: Annotated[
        str, typer.Option(help="Where artifacts go: a folder, or s3://bucket/folder.")
    ],
    backend_store_uri_file: Annotated[
        Path | None,
        typer.Option(help=f"Holds the database's URL; without it, {URI_VARIABLE} does."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of 250 MB each.")] = 4,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = LOCALHOST,
    allow_remote: Annotated[
        bool, typer.Option(ALLOW_REMOTE, help="Also on an interface that others can reach.")
    ] = False,
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="A name that the server is reached under. May be repeated."),
    ] = None,
    basic_auth: Annotated[bool, typer.Option("--basic-auth", help="Ask for passwords.")] = False,
    upgrade: Annotated[
        bool,
        typer.Option("--upgrade", help="Bring an older database up to date; back it up before."),
    ] = False,
) -> None:
    """Serve MLflow over a database, until SIGTERM or Ctrl-C."""
    options = ServerOptions(artifacts, port, workers, host, tuple(server_name or ()), basic_auth)
    risk = warning(options)
    if risk and not allow_remote:
        raise ConfigError(f"--host {risk} If that is wanted, say {ALLOW_REMOTE}.")
    uri = backend_store_uri(os.environ, backend_store_uri_file)
    os.environ.update(settings(uri))
    if basic_auth:
        check_basic_auth(os.environ)
    if check_database(uri, may_upgrade=upgrade):
        upgrade_database(uri)
    if risk:
        print(f"warning: {risk}", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", *command(options)])


def _stands_for_all(name: str) -> bool:
    """Whether it is an interface like 0.0.0.0, which nobody writes into a browser."""
    try:
        return ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake is one sentence, not a traceback."""
    app = typer.Typer(add_completion=False)
    app.command()(run)
    try:
        app(arguments)
    except ConfigError as error:
        print(f"cluster.mlflow: {error}", file=sys.stderr)
        raise SystemExit(2) from None
