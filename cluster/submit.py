"""A search as a job of a Ray cluster, through Ray's own job server.

The job runs `python -m tuning search ... --resume` in a copy of the working directory, so the same
request, sent again, goes on with the run that it began; while the job runs, it is found again and
not sent twice. It needs what the search needs installed on the cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.job_client import NO_ANSWER, job_client
from cluster.upload import (
    check_data_root,
    check_databases,
    check_files,
    check_urls,
    config_within,
    excludes,
)
from trainers.errors import ConfigError, first_line
from tuning.config.loading import read_layers
from tuning.config.schema import SearchFile
from tuning.config.validation import check_settings, has_password, load_config
from tuning.runs.resume import identity
from tuning.security.exposure import check_sends

STOP_SECONDS = 20
"""Between SIGTERM and SIGKILL of a job that is stopped; Ray's own default, 3 s, is too short to end
trials in order."""

AGENT_ATTEMPTS, AGENT_WAIT_S = 10, 2.0

CARRIED = ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")
"""Of this environment, what every job takes along. `RAY_ADDRESS` is the cluster's own: Ray sets it
for the driver, and the driver for its workers."""

_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|pwd$|secret|token|credential|(api|access|private)_?key", re.I
)


@dataclass(frozen=True)
class JobRequest:
    """What is to be run."""

    config: str
    """A YAML file within the working directory, or a ready configuration."""
    overrides: tuple[str, ...] = ()
    """`key=value`, as of `search --set`."""
    working_dir: Path = Path()
    """What the job gets a copy of, less `cluster.upload.excludes`."""
    environment: tuple[str, ...] = ()
    """Names of variables that go along."""


@dataclass(frozen=True)
class Job:
    """A job on the cluster."""

    address: str
    submission_id: str
    is_new: bool
    """False where the same search was running already."""
    storage: str
    warning: str | None = None

    def logs_command(self) -> str:
        """Ray's own, which follows the job."""
        return f"ray job logs --follow --address {self.address} {self.submission_id}"

    def description(self) -> list[str]:
        """For people: what it is called, and how to look at it and stop it."""
        state = "" if self.is_new else "  (it was running already: nothing was submitted)"
        runs = self.storage
        if "://" not in runs and not runs.startswith(("/", "~")):
            runs = f"~/lipsum-tune/{runs} of the head node (search.storage is not absolute)"
        return [
            *([f"warning: {self.warning}"] if self.warning else ()),
            f"Job         {self.submission_id}{state}",
            f"Runs in     {runs}",
            f"Look        {self.logs_command()}",
            f"Dashboard   {self.address}/#/jobs/{self.submission_id}",
            f"Stop        ray job stop --address {self.address} {self.submission_id}",
            "Go on       the same `lipsum-tune submit`, after a stop or a failure",
        ]


def submit_search(request: JobRequest, address: str, *, allow_remote: bool = False) -> Job:
    """Submit the search, unless it is running already.

    Args:
        request: what to run.
        address: of the cluster's dashboard, `http://HOST:PORT`.
        allow_remote: plain http may go to another machine.

    Raises:
        ConfigError: a mistake in the configuration (data and resources are the cluster's, and not
            looked at here), a path that the job would not find again, a variable that is missing, a
            secret, or no job server at the address.
    """
    address = address.rstrip("/")
    warning = check_sends(address, "code and Ray's token", allow_remote)
    working_dir = request.working_dir.expanduser().resolve()
    if not working_dir.is_dir():
        raise ConfigError(f"--working-dir {request.working_dir}: no such folder")
    refuse_passwords(request.overrides)
    config = config_within(working_dir, request.config)
    file = load_config(request.config, request.overrides, check=False)
    try:
        check_settings(file)
        values = read_layers(request.config, request.overrides)[1]
        check_urls(values)
        check_data_root(values)
        check_files(values)
        check_databases(values)
    except ConfigError as error:
        raise ConfigError(f"{request.config}: {error}") from None
    runtime_env = {
        "working_dir": str(working_dir),
        "excludes": excludes(working_dir, file),
        "env_vars": carried(request.environment, os.environ),
    }
    base = submission_base(file)
    try:
        client = job_client(address)
        jobs = {number: job for job in client.list_jobs() if (number := _number(job, base))}
    except (*NO_ANSWER, ValueError) as error:
        hint = "" if os.environ.get("RAY_AUTH_MODE") else "; is RAY_AUTH_MODE=token missing here?"
        raise ConfigError(f"--address {address}: {first_line(error)}{hint}") from None
    running = [number for number, job in jobs.items() if not job.status.is_terminal()]
    if running:
        job_id = str(jobs[max(running)].submission_id)
        return Job(address, job_id, False, file.search.storage, warning)
    arguments = [argument for line in request.overrides for argument in ("--set", line)]
    try:
        submission_id = _submitted(
            client,
            entrypoint=shlex.join(
                ["python", "-m", "tuning", "search", config, "--resume", *arguments]
            ),
            submission_id=f"{base}-{max(jobs) + 1}" if jobs else base,
            runtime_env=runtime_env,
            metadata={"lipsum-tune": file.search.name},
        )
    except (*NO_ANSWER, ValueError) as error:
        raise ConfigError(
            f"{address}: the job could not be submitted: {first_line(error)}; where it got there "
            "all the same, the same command finds it"
        ) from None
    return Job(address, submission_id, True, file.search.storage, warning)


def submission_base(file: SearchFile) -> str:
    """The same for the same search: that whose run folder `search --resume` would take up."""
    digest = hashlib.sha256(json.dumps(identity(file), sort_keys=True).encode()).hexdigest()[:8]
    return f"{file.search.name}-{digest}"


def refuse_passwords(overrides: tuple[str, ...]) -> None:
    """Raise a ConfigError, which does not repeat it, for a password in what `--set` says."""
    for override in overrides:
        key, _, value = override.partition("=")
        if has_password(value):
            raise ConfigError(
                f"--set {key}: a password does not belong into a job's command, which Ray shows on "
                "its dashboard and in its logs; set it in the environment of the cluster's nodes"
            )


def carried(names: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that go along with a job.

    Ray shows a job's environment on its dashboard and writes it to its logs, so secrets are not
    taken: they belong into the environment of the nodes.

    Raises:
        ConfigError: a name that is not set, or looks like a secret's.
    """
    for name in names:
        if name not in environment:
            raise ConfigError(f"--env {name}: not set in this environment")
        if _SECRET.search(name) or has_password(environment[name]):
            raise ConfigError(
                f"--env {name}: it looks like a secret, and Ray shows a job's environment on its "
                "dashboard and in its logs; set it in the environment of the cluster's nodes"
            )
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if has_password(uri):
        raise ConfigError(
            "MLFLOW_TRACKING_URI: there is a password in it; write ${NAME} in its place, and set "
            "that variable in the environment of the cluster's nodes"
        )
    wanted = (*(name for name in CARRIED if name in environment), *names)
    taken = {name: environment[name] for name in wanted}
    columns = shutil.get_terminal_size((120, 40)).columns  # of whoever reads the logs
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "COLUMNS": str(columns), **taken}


def _submitted(client: JobSubmissionClient, **job: Any) -> str:
    """Its id. A head takes some seconds after it answers until it can start jobs."""
    for _ in range(AGENT_ATTEMPTS):
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(AGENT_WAIT_S)
    return client.submit_job(**job)


def _number(job: JobDetails, base: str) -> int:
    """How many times the search had been submitted with this job; 0 where it is of another."""
    found = re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", job.submission_id or "")
    return int(found[1] or 1) if found else 0
