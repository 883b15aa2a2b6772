"""A real PostgreSQL for the tests, of their own in a temporary folder, stopped at the end."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psycopg

from cluster import mlflow
from tuning.execution.ray_session import free_port

SCRIPT = Path(mlflow.__file__).parent / "databases.sql"


@dataclass(frozen=True)
class Postgres:
    """A running server with the databases that `cluster/mlflow/databases.sql` makes."""

    port: int
    passwords: Mapping[str, str]

    def url(self, database: str, driver: str = "+psycopg", password: str | None = None) -> str:
        """As SQLAlchemy takes it; the user is called like the database."""
        password = password or self.passwords[database]
        return f"postgresql{driver}://{database}:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        """What plain SQL says, past MLflow and Optuna."""
        with psycopg.connect(self.url(database, driver="")) as connection:
            return connection.execute(sql).fetchall()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server on loopback, with passwords, gone afterwards with all that it holds."""
    binaries = _binaries()
    # Not in pytest's own folder: the server refuses to be root, and others may not look into that.
    folder = Path(mkdtemp(prefix="lipsum-tune-postgres-", dir="/tmp"))
    passwords = {name: secrets.token_hex(16) for name in ("postgres", "mlflow", "optuna")}
    port, user = free_port(), "postgres" if os.geteuid() == 0 else None

    def call(*arguments: object) -> None:
        done = subprocess.run(
            [*map(str, arguments)], user=user, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        if user is not None:
            shutil.chown(folder, user)
        secret = folder / "password"
        secret.write_text(passwords["postgres"])
        secret.chmod(0o600)
        if user is not None:
            os.chown(secret, pwd.getpwnam(user).pw_uid, -1)
        data, log = folder / "data", folder / "log"
        call(
            *(binaries / "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256"),
            *(f"--pwfile={secret}", "--no-sync", "--encoding=UTF8", "--locale=C"),
        )
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        # Postgres keeps an output that it inherits open, and whoever reads that would wait for it.
        call(binaries / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            server = Postgres(port, passwords)
            _make_databases(binaries, server)
            yield server
        finally:
            call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


def _make_databases(binaries: Path, server: Postgres) -> None:
    environment = os.environ | {
        "PGPASSWORD": server.passwords["postgres"],
        "MLFLOW_DB_PASSWORD": server.passwords["mlflow"],
        "OPTUNA_DB_PASSWORD": server.passwords["optuna"],
    }
    where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
    with SCRIPT.open() as script:
        subprocess.run([binaries / "psql", "-q", *where], env=environment, stdin=script, check=True)


def _binaries() -> Path:
    """Of the newest PostgreSQL that Debian's packages installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    assert found, "PostgreSQL is missing: apt-get install postgresql"
    return found[-1]
