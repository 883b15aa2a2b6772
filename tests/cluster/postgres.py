"""A real PostgreSQL server for tests, in a temporary folder."""

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import psycopg

from tests.ports import free_ports

SCRIPT = Path(__file__).parent.parent.parent / "cluster" / "mlflow" / "databases.sql"


@dataclass(frozen=True)
class Postgres:
    """A running server with the databases of `cluster/mlflow/databases.sql`."""

    port: int
    passwords: Mapping[str, str]

    def url(self, database, driver="+psycopg", password=None):
        """URL for SQLAlchemy; user and database have the same name."""
        password = password or self.passwords[database]
        return f"postgresql{driver}://{database}:{password}@127.0.0.1:{self.port}/{database}"

    @property
    def mlflow_environment(self):
        """Environment of an MLflow server on this database, as its README describes it."""
        return {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/mlflow",
            "PGPASSWORD": self.passwords["mlflow"],
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def query(self, database, sql):
        """Rows of a query, independent of MLflow and Optuna."""
        with psycopg.connect(self.url(database, driver="")) as connection:
            return connection.execute(sql).fetchall()


@contextmanager
def running_postgres():
    """Run a server on loopback with passwords; its data are removed afterwards."""
    binaries = _binaries()
    # Not in pytest's folder: the server refuses to run as root, and others cannot read that.
    folder = Path(mkdtemp(prefix="lipsum-tune-postgres-", dir="/tmp"))
    passwords = {name: secrets.token_hex(16) for name in ("postgres", "mlflow", "optuna")}
    port, user = free_ports(1), "postgres" if os.geteuid() == 0 else None

    def call(*arguments):
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
        # Without -l, the server would keep the pipe of our output open.
        call(binaries / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            server = Postgres(port, passwords)
            _make_databases(binaries, server)
            yield server
        finally:
            call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


def _make_databases(binaries, server):
    environment = os.environ | {
        "PGPASSWORD": server.passwords["postgres"],
        "MLFLOW_DB_PASSWORD": server.passwords["mlflow"],
        "OPTUNA_DB_PASSWORD": server.passwords["optuna"],
    }
    where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
    with SCRIPT.open() as script:
        subprocess.run([binaries / "psql", "-q", *where], env=environment, stdin=script, check=True)


def _binaries():
    """Folder of the newest PostgreSQL that Debian's packages installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    assert found, "PostgreSQL is missing: apt-get install postgresql"
    return found[-1]
