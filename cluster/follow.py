"""The logs of a job, as they come, and how it ended."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from cluster.job_client import NO_ANSWER, job_client
from cluster.submit import Job
from trainers.errors import first_line

POLL_S = 1.0
"""From one attempt to the next, where the logs do not come."""
PATIENCE_S = 600.0
"""For how long a cluster may not answer; its job goes on without being followed."""

T = TypeVar("T")


def follow(job: Job, console: Console, *, patience_s: float = PATIENCE_S) -> int:
    """Print the job's logs on standard output until it ends.

    Args:
        job: on the cluster.
        console: for what is not the job's.
        patience_s: for how long the cluster may not answer.

    Returns:
        The exit status of the search; 130 where the job was stopped, or the following with Ctrl-C,
        which leaves the job alone; 1 where the cluster does not answer any more.
    """
    try:
        details = asyncio.run(_Followed(job, patience_s).to_its_end())
    except KeyboardInterrupt:
        console.print("\nThe job goes on without being followed.")
        return 130
    except _Lost as lost:
        console.print(str(lost), highlight=False, soft_wrap=True, markup=False)
        return 1
    console.print(f"Job {job.submission_id}  {details.status}", highlight=False)
    return _exit_status(details)


class _Lost(Exception):
    """The cluster does not answer any more; the message says how to go on."""


class _Followed:
    """A job whose logs are printed, over as many connections as it takes."""

    def __init__(self, job: Job, patience_s: float) -> None:
        self._job = job
        self._patience_s = patience_s
        self._silent_since: float | None = None
        self._printed = 0

    async def to_its_end(self) -> JobDetails:
        """What the cluster says of the job once it has ended.

        Raises:
            _Lost: there was no answer for too long.
        """
        name = self._job.submission_id
        client: JobSubmissionClient | None = None
        while True:
            client = client or self._ask(partial(job_client, self._job.address))
            if client is not None:
                await self._print_logs(client)
                details = self._ask(partial(client.get_job_info, name))
                if details is not None and details.status.is_terminal():
                    # What came while there was no connection; gone where its node is.
                    self._print(self._ask(partial(client.get_job_logs, name)) or "", 0)
                    return details
            await asyncio.sleep(POLL_S)

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None where there is none just now."""
        try:
            answer = question()
        except NO_ANSWER as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since > self._patience_s:
                raise self._lost(error) from None
            return None
        self._silent_since = None
        return answer

    async def _print_logs(self, client: JobSubmissionClient) -> None:
        """All that is new, until the logs end or break off; which of the two is not told."""
        seen = 0
        async for text in _logs(client, self._job.submission_id):
            self._print(text, seen)
            seen += len(text)

    def _print(self, text: str, at: int) -> None:
        """What has not been printed of a part of the logs, which begin again at each connection."""
        new = text[max(0, self._printed - at) :]
        if new:
            self._silent_since = None
        self._printed += len(new)
        sys.stdout.write(new)
        sys.stdout.flush()

    def _lost(self, error: BaseException) -> _Lost:
        job = self._job
        return _Lost(
            f"{job.address}: no answer for {self._patience_s / 60:g} minutes "
            f"({first_line(error)}). The job may still run: the same `lipsum-tune submit` follows "
            f"it again, as does `{job.logs_command()}`"
        )


async def _logs(client: JobSubmissionClient, submission_id: str) -> AsyncIterator[str]:
    """Whole lines, from the first on, until the job or the connection ends."""
    with suppress(*NO_ANSWER):
        async for text in client.tail_job_logs(submission_id):
            yield text


def _exit_status(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 130
    return details.driver_exit_code or 1
