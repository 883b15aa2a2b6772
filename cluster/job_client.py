"""A client of a cluster's job server, at the address that was given and at no other."""

from __future__ import annotations

import logging
import os

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

NO_ANSWER = (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError)
"""What the client raises where it gets no answer, or none that it can use; those of `requests` are
OSErrors."""

_OVERRIDES = "RAY_API_SERVER_ADDRESS"


def job_client(address: str) -> JobSubmissionClient:
    """Connect to the job server at an address.

    Ray would take RAY_API_SERVER_ADDRESS, or else RAY_ADDRESS, over the address that its client is
    given, and so send code and token to where nobody has looked whether they may go.

    Args:
        address: of the cluster's dashboard, `http://HOST:PORT`.

    Raises:
        ValueError: it is no address. Else what `NO_ANSWER` lists.
    """
    # They name every file that is left out, and tell of their connections.
    for name in ("ray", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = os.environ.get(_OVERRIDES)
    os.environ[_OVERRIDES] = address
    try:
        return JobSubmissionClient(address)
    finally:
        if before is None:
            del os.environ[_OVERRIDES]
        else:
            os.environ[_OVERRIDES] = before
