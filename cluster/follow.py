"""The logs of a job, as they come, and how it ended."""

from __future__ import annotations

import asyncio
import sys
import time

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from cluster.submit import Job

POLL_S = 1.0
"""From one question for the job's state to the next, where its logs do not come."""


def follow(job: Job, console: Console) -> int:
    """Print the job's logs on standard output until it ends.

    Args:
        job: on the cluster.
        console: for what is not the job's.

    Returns:
        The exit status of the search; 130 where the job was stopped, or the following with Ctrl-C,
        which leaves the job alone.
    """
    client = JobSubmissionClient(job.address)
    try:
        asyncio.run(_print_logs(client, job.submission_id))
    except KeyboardInterrupt:
        console.print("\nThe job goes on without being followed.")
        return 130
    details = client.get_job_info(job.submission_id)
    console.print(f"Job {job.submission_id}  {details.status}", highlight=False)
    return _exit_status(details)


async def _print_logs(client: JobSubmissionClient, submission_id: str) -> None:
    """Whole lines; a connection that breaks is made again, and what was printed is left out."""
    printed = 0
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(submission_id):
                new = text[max(0, printed - seen) :]
                seen += len(text)
                printed += len(new)
                sys.stdout.write(new)
                sys.stdout.flush()
        except (OSError, RuntimeError):
            time.sleep(POLL_S)
        if client.get_job_status(submission_id).is_terminal():
            return


def _exit_status(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 130
    return details.driver_exit_code or 1
