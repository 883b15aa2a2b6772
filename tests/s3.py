"""A real S3 server on loopback for this test process and everything that it starts."""

import logging
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.ports import free_ports
from trainers.data.store import open_store
from tuning.execution.ray_session import LOCALHOST

SECRET = "a-secret-of-tests"
PORT = free_ports(1)
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://{LOCALHOST}:{PORT}",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""How clients find the server. The Ray of the fixture `ray_head` has these from its start, since
workers do not take over the environment of a driver that connects later."""


@pytest.fixture(scope="module")
def bucket():
    with s3_server():
        boto3.client("s3").create_bucket(Bucket="mine")
        yield "s3://mine"


@pytest.fixture(params=["disk", "bucket"])
def anywhere(request, tmp_path):
    """An empty folder on a disk, and one in a bucket."""
    if request.param == "disk":
        return open_store(tmp_path / "train")
    return open_store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/train")


@contextmanager
def s3_server():
    """Run an empty server, and set the environment of this process so that clients find it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line for each request
    server = ThreadedMotoServer(ip_address=LOCALHOST, port=PORT, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield server
    server.stop()
