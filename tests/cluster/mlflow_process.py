"""An MLflow server on PostgreSQL as a process that tests start, hang and stop."""

import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.ports import free_ports
from tests.waiting import wait_until

READY_S = 120


class ServerProcess:
    """A server that keeps its address when it is started again.

    Args:
        postgres: holds its database.
        folder: for its artifacts and its log.
    """

    def __init__(self, postgres, folder):
        port = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        self.artifacts = folder / "artifacts"
        self._environment = os.environ | postgres.mlflow_environment
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(port), "--workers", "2",
            "--serve-artifacts", "--artifacts-destination", str(self.artifacts),
        ]  # fmt: skip
        self._process = None

    def start(self):
        """Start the server, and return when all of its workers answer."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.answers, READY_S, self._process)
        with ThreadPoolExecutor(8) as pool:  # each worker opens the database at its first request
            list(pool.map(self._first_experiment, range(8)))

    def answers(self):
        """Whether it runs and does not hang."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                return True
        except OSError:
            return False

    def hang(self):
        """Suspend all processes: connections are accepted, but not answered."""
        self._signal(signal.SIGSTOP)

    def kill(self):
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.wait(60)

    def _first_experiment(self, _):
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        with urllib.request.urlopen(self.url + path, timeout=READY_S) as answer:
            assert answer.status == 200

    def _signal(self, number):
        os.killpg(self._process.pid, number)


@contextmanager
def running_server(postgres, folder):
    """A server that answers; killed afterwards if it is still there."""
    server = ServerProcess(postgres, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
