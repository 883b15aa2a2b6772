"""Follow a job: print its logs until it ends, over as many connections as that takes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from cluster.submit import NO_ANSWER, Job, job_client
from trainers.errors import first_line

POLL_S = 1.0
"""Time between attempts to connect."""
PATIENCE_S = 600.0
"""Time without an answer after which the job is no longer followed."""


def follow(job: Job, console: Console, *, patience_s: float = PATIENCE_S) -> int:
    """Print the job's logs on standard output until it ends.

    Returns:
        The exit status of the search. 130 if the job was stopped, or if Ctrl-C ended the following,
        which leaves the job running. 1 if the cluster no longer answers.
    """
    try:
        details = asyncio.run(_print_to_the_end(job, patience_s))
    except KeyboardInterrupt:
        console.print("\nThe job continues without being followed.")
        return 130
    except TimeoutError as error:
        console.print(
            f"{job.address}: no answer for {patience_s / 60:g} minutes ({error}). The job may "
            "still run: the same `lipsum-tune submit` follows it again, as does "
            f"`{job.logs_command()}`",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        return 1
    console.print(f"Job {job.submission_id}  {details.status}", highlight=False)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return 130 if details.status == JobStatus.STOPPED else details.driver_exit_code or 1


async def _print_to_the_end(job: Job, patience_s: float) -> JobDetails:
    """Print the logs; return the details of the ended job.

    Raises:
        TimeoutError: the cluster gave no answer for too long; the message is the last error.
    """
    printed, answered_at = 0, time.monotonic()

    def print_new(text: str, position: int) -> None:
        """Print what is new of a part of the logs, which start anew with each connection."""
        nonlocal printed, answered_at
        if new := text[max(0, printed - position) :]:
            printed += len(new)
            answered_at = time.monotonic()
            sys.stdout.write(new)
            sys.stdout.flush()

    while True:
        try:
            client = job_client(job.address)
            position = 0
            async for text in _logs(client, job.submission_id):
                print_new(text, position)
                position += len(text)
            # Whether the job ended or the connection broke is not visible in the logs.
            details = client.get_job_info(job.submission_id)
            answered_at = time.monotonic()
        except BrokenPipeError:  # the reader of standard output is gone
            raise
        except NO_ANSWER as error:
            if time.monotonic() - answered_at > patience_s:
                raise TimeoutError(first_line(error)) from None
        else:
            if details.status.is_terminal():
                logs = ""
                with suppress(*NO_ANSWER):  # the logs are lost with their node
                    logs = client.get_job_logs(job.submission_id)
                print_new(logs, 0)
                return details
        await asyncio.sleep(POLL_S)


async def _logs(client: JobSubmissionClient, submission_id: str) -> AsyncIterator[str]:
    """Parts of the logs from their beginning, until the job or the connection ends."""
    with suppress(*NO_ANSWER):
        async for text in client.tail_job_logs(submission_id):
            yield text
