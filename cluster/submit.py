"""Submit a search as a job of a Ray cluster, through Ray's own job server.

The job runs `python -m tuning search ... --resume` in a copy of the working directory. Submitting
the same search again resumes its run; while its job runs, the job is found and not submitted twice.
The packages that a search needs must be installed on the cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.upload import check_paths, check_uploaded, config_within, excludes
from trainers.errors import ConfigError, first_line
from trainers.redact import has_password, is_secret_name
from tuning.config.loading import read_layers
from tuning.config.schema import SearchFile
from tuning.config.validation import check_settings, load_config
from tuning.execution.signals import environment_variables
from tuning.resume import identity
from tuning.security.exposure import check_sends

STOP_SECONDS = 20
"""Time between SIGTERM and SIGKILL of a stopped job. Ray's default, 3 s, is too short to save
running trials."""
AGENT_ATTEMPTS, AGENT_WAIT_S = 10, 2.0

PASSED_VARIABLES = ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")
"""Environment variables that every job gets if they are set."""

NO_ANSWER = (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError)
"""Errors of Ray's job client if it gets no usable answer; those of `requests` are OSErrors."""


@dataclass(frozen=True)
class Job:
    """A job on the cluster."""

    address: str
    submission_id: str
    is_new: bool
    """False if the same search was running already."""
    storage: str
    warning: str | None = None

    def logs_command(self) -> str:
        """Ray's command that follows the logs."""
        return f"ray job logs --follow --address {self.address} {self.submission_id}"

    def description(self) -> list[str]:
        """Lines for the terminal: id, run folder, and commands to follow and stop the job."""
        state = "" if self.is_new else "  (it was running already: nothing was submitted)"
        runs = self.storage
        if not Path(runs).expanduser().is_absolute():  # the log has the absolute path
            runs = f"~/lipsum-tune/{runs} on the head node"
        return [
            *([f"warning: {self.warning}"] if self.warning else ()),
            f"Job         {self.submission_id}{state}",
            f"Runs in     {runs}",
            f"Logs        {self.logs_command()}",
            f"Dashboard   {self.address}/#/jobs/{self.submission_id}",
            f"Stop        ray job stop --address {self.address} {self.submission_id}",
            "Resume      the same `lipsum-tune submit`, after a stop or a failure",
        ]


def submit_search(
    config: str,
    overrides: Sequence[str],
    working_dir: Path,
    address: str,
    *,
    environment: Sequence[str] = (),
    allow_remote: bool = False,
) -> Job:
    """Submit the search, unless it is running already.

    Args:
        config: path of a YAML file in the working directory, or name of a ready configuration.
        overrides: `key=value`, as for `search --set`.
        working_dir: folder that is uploaded, except for `cluster.upload.excludes`.
        address: of the cluster's dashboard, `http://HOST:PORT`.
        environment: names of variables to pass to the job.
        allow_remote: allow plain http to another machine.

    Raises:
        ConfigError: the configuration is wrong (data and resources are not checked: they are the
            cluster's), it has a path that the job would not find, a variable is missing or holds a
            secret, or no job server answers.
    """
    address = address.rstrip("/")
    warning = check_sends(address, "code and Ray's token", allow_remote)
    if not working_dir.expanduser().is_dir():
        raise ConfigError("no such folder", key="--working-dir", value=str(working_dir))
    working_dir = working_dir.expanduser().resolve()
    config_there = config_within(working_dir, config)
    file = load_config(config, overrides, check=False)
    left_out = excludes(working_dir, file)
    try:
        check_settings(file)
        origin, values = read_layers(config, overrides)
        check_paths(values)
        check_uploaded(origin.files, working_dir, left_out)
    except ConfigError as error:
        raise ConfigError(
            error.problem, key=error.key, value=error.value, hint=error.hint, source=config
        ) from None

    command = ["python", "-m", "tuning", "search", config_there, "--resume"]
    command += [argument for line in overrides for argument in ("--set", line)]
    runtime_env = {
        "working_dir": str(working_dir),
        "excludes": left_out,
        "env_vars": job_environment(environment, os.environ),
    }
    base = submission_base(file)
    try:
        client = job_client(address)
        # The first job of a search has the base as its id, the n-th `base-n`.
        jobs: dict[int, JobDetails] = {}
        for job in client.list_jobs():
            if found := re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", job.submission_id or ""):
                jobs[int(found[1] or 1)] = job
    except (*NO_ANSWER, ValueError) as error:
        hint = None if os.environ.get("RAY_AUTH_MODE") else "is RAY_AUTH_MODE=token missing here?"
        raise ConfigError(first_line(error), key=f"--address {address}", hint=hint) from None
    running = [number for number, job in jobs.items() if not job.status.is_terminal()]
    if running:
        job_id = str(jobs[max(running)].submission_id)
        return Job(address, job_id, False, file.search.storage, warning)
    for attempt in range(AGENT_ATTEMPTS):
        try:
            submission_id = client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=f"{base}-{max(jobs) + 1}" if jobs else base,
                runtime_env=runtime_env,
                metadata={"lipsum-tune": file.search.name},
            )
            break
        except (*NO_ANSWER, ValueError) as error:
            # A new head accepts requests some seconds before it can start jobs.
            if "No available agent" in str(error) and attempt + 1 < AGENT_ATTEMPTS:
                time.sleep(AGENT_WAIT_S)
                continue
            raise ConfigError(
                f"the job could not be submitted: {first_line(error)}",
                source=address,
                hint="if the server did get it, the same command finds it",
            ) from None
    return Job(address, submission_id, True, file.search.storage, warning)


def submission_base(file: SearchFile) -> str:
    """Id of the search's first job, equal for all configurations that resume the same run."""
    digest = hashlib.sha256(json.dumps(identity(file), sort_keys=True).encode()).hexdigest()[:8]
    return f"{file.search.name}-{digest}"


_VISIBLE = (
    "command and environment, which Ray shows on its dashboard and in its logs; set it in the "
    "environment of the cluster's nodes"
)


def job_environment(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a job: those named, and settings that every job needs.

    Raises:
        ConfigError: a variable is not set, or holds a secret.
    """
    for name in names:
        if name not in environment:
            raise ConfigError("not set in this environment", key=f"--env {name}")
        if is_secret_name(name) or has_password(environment[name]):
            problem = f"it looks like a secret, which would be visible in the job's {_VISIBLE}"
            raise ConfigError(problem, key=f"--env {name}")
    if has_password(environment.get("MLFLOW_TRACKING_URI", "")):
        raise ConfigError(
            f"its password would be visible in the job's {_VISIBLE}",
            key="MLFLOW_TRACKING_URI",
            hint="write ${NAME} in place of the password",
        )
    passed = (*(name for name in PASSED_VARIABLES if name in environment), *names)
    return {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        "COLUMNS": str(shutil.get_terminal_size((120, 40)).columns),  # width of tables in the logs
        **{name: environment[name] for name in passed},
    }


def job_client(address: str) -> JobSubmissionClient:
    """Connect to the job server at an address.

    Ray's client (2.60) prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS over its own argument: code
    and token would go to an address that `check_sends` has not seen.

    Raises:
        ValueError: not an address. Otherwise one of `NO_ANSWER`.
    """
    # These loggers list every excluded file, and all connections.
    for name in ("ray", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with environment_variables({"RAY_API_SERVER_ADDRESS": address}):
        return JobSubmissionClient(address)
