"""`spot_notice.sh` with a real Ray, and an imitation of the clouds' metadata services."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from tests.ray_head import retry_slow_start
from tests.waiting import wait_until
from tuning.execution.ray_workarounds import draining_nodes

SCRIPT = Path(__file__).parent.parent.parent / "cluster" / "launcher" / "spot_notice.sh"
BIN = Path(sys.executable).parent


class Metadata(ThreadingHTTPServer):
    """A metadata service, which announces the preemption once `preempted` is set."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.preempted = False
        self.asked = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """AWS: a token, then 404 until there is a notice. Google: FALSE or TRUE."""

    server: Metadata

    def do_PUT(self):
        lifetime = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        known = self.path == "/latest/api/token" and lifetime
        self._answer(200 if known else 403, b"a-token")

    def do_GET(self):
        self.server.asked += 1
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "a-token":
                self._answer(401, b"")
            else:
                notice = b'{"action": "terminate", "time": "2026-01-01T00:02:00Z"}'
                self._answer(200 if self.server.preempted else 404, notice)
        elif self.headers["Metadata-Flavor"] == "Google":
            assert self.path == "/computeMetadata/v1/instance/preempted"
            self._answer(200, b"TRUE" if self.server.preempted else b"FALSE")
        else:
            self._answer(403, b"")

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@contextmanager
def metadata_service():
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def busy_node():
    """Address of a Ray node that is busy, so that it stays while it is drained."""
    found = retry_slow_start(
        lambda: ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    )
    try:

        @ray.remote(num_cpus=1)
        class Work:
            def ready(self):
                return True

        work = Work.remote()
        assert ray.get(work.ready.remote())
        yield found.address_info["gcs_address"]
    finally:
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize(("cloud", "seconds"), [("aws", 110), ("gcp", 25)])
def test_the_node_is_drained_when_the_cloud_preempts_it(cloud, seconds, busy_node, tmp_path):
    with metadata_service() as metadata:
        environment = os.environ | {
            "METADATA_URL": metadata.url, "RAY_ADDRESS": busy_node, "TMPDIR": str(tmp_path),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        watch = subprocess.Popen(["bash", SCRIPT, cloud], env=environment)
        try:
            wait_until(lambda: metadata.asked >= 2)
            before = draining_nodes()
            second = subprocess.run(["bash", SCRIPT, cloud], env=environment, timeout=60)
            assert second.returncode == 0  # the first is waiting already
            metadata.preempted = True
            since = time.time()
            assert watch.wait(timeout=60) == 0
        finally:
            watch.kill()
            watch.wait()
    (node,) = [node["NodeID"] for node in ray.nodes()]
    wait_until(lambda: draining_nodes().get(node, 0) != before.get(node, 0))
    deadline = draining_nodes()[node] / 1000
    assert since + seconds - 1 <= deadline <= time.time() + seconds


def test_another_cloud_is_refused():
    refused = subprocess.run(["bash", SCRIPT, "azure"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "usage" in refused.stderr
