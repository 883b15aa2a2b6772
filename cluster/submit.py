"""Submit a search as a job of a Ray cluster, through Ray's own job server, and follow it.

The job runs `python -m tuning search ... --resume` in a copy of the working directory. Submitting
the same search again follows its job, or resumes its run if that has ended. The packages that a
search needs must be installed on the cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from trainers.data.data_root import EMBEDDED
from trainers.errors import ConfigError, first_line
from trainers.redact import has_password, is_secret_name
from tuning.config.loading import find_config, read_layers
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

EXCLUDED = (
    ".git/", "__pycache__/", "node_modules/", "/data/", "/runs/", "*.arrow", "*.parquet", "*.tar",
    "mlruns/", "mlflow.db", ".env", ".env.*", ".netrc", "*.pem",
    # Keys, tokens and passwords in a home directory.
    ".aws/", ".azure/", ".config/", ".docker/", ".gnupg/", ".kube/", ".ray/", ".ssh/",
)  # fmt: skip
"""Patterns of files that are never uploaded; Ray also reads the .gitignore files that it finds."""
MAX_UPLOAD_MB = 100
"""Of the working directory: code and configurations are smaller, and every node gets a copy."""

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
        working_dir: folder that is uploaded, except for `EXCLUDED` and environments.
        address: of the cluster's dashboard, `http://HOST:PORT`.
        environment: names of variables to pass to the job.
        allow_remote: allow plain http to another machine.

    Raises:
        ConfigError: the configuration is wrong (data and resources are not checked: they are the
            cluster's), a path in it is relative and not in the upload, the upload is too large, a
            variable is missing or holds a secret, or no job server answers.
    """
    address = address.rstrip("/")
    warning = check_sends(address, "code and Ray's token", allow_remote)
    if not working_dir.expanduser().is_dir():
        raise ConfigError("no such folder", key="--working-dir", value=str(working_dir))
    working_dir = working_dir.expanduser().resolve()
    config_there = _config_within(working_dir, config)
    file = load_config(config, overrides, check=False)
    try:
        check_settings(file)
        _check_paths(read_layers(config, overrides)[1])
    except ConfigError as error:
        raise ConfigError(
            error.problem, key=error.key, value=error.value, hint=error.hint, source=config
        ) from None
    left_out = _excludes(working_dir)
    _check_size(working_dir, left_out)

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


def follow(job: Job) -> int:
    """Print the job's logs until it ends, by Ray's own command.

    Returns:
        The exit status of the search. 130 if the job was stopped, or if Ctrl-C ended the following,
        which leaves the job running. 1 if the connection was lost.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", *shlex.split(job.logs_command())[1:]]
    try:
        with environment_variables({"RAY_API_SERVER_ADDRESS": job.address}):
            subprocess.run(command, check=False)
        details = job_client(job.address).get_job_info(job.submission_id)
    except KeyboardInterrupt:
        print("\nThe job continues. The same command follows it again.", file=sys.stderr)
        return 130
    except (*NO_ANSWER, ValueError) as error:
        raise ConfigError(
            f"the connection was lost: {first_line(error)}",
            key=f"--address {job.address}",
            hint="the job may still run: the same command follows it again",
        ) from None
    print(f"Job {job.submission_id}  {details.status}", file=sys.stderr)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return 130 if details.status == JobStatus.STOPPED else details.driver_exit_code or 1


def _config_within(working_dir: Path, config: str) -> str:
    """The configuration for the job: name of a ready one, or path relative to its directory."""
    if not Path(config).is_file():
        find_config(config)  # raises if it is not a ready one
        return config
    file = Path(config).resolve()
    if not file.is_relative_to(working_dir):
        problem = f"it is not in the job's working directory {working_dir}"
        hint = "copy it there, or choose another directory with --working-dir"
        raise ConfigError(problem, hint=hint, source=config)
    return file.relative_to(working_dir).as_posix()


def _check_paths(values: Mapping[str, Any]) -> None:
    """Refuse what the job would read from, or write to, its temporary copy of the directory.

    Args:
        values: as written in the configuration; validated ones have absolute paths.
    """
    trial, search = values.get("trial", {}), values.get("search", {})
    root = str(trial.get("data", {}).get("root") or EMBEDDED)
    runs = search.get("warm_start", {}).get("runs", ())
    paths = {
        "trial.data.root": "" if root == EMBEDDED else root,
        "search.study_storage": search.get("study_storage"),
        "search.tracking.uri": search.get("tracking", {}).get("uri"),
    }
    for run in [runs] if isinstance(runs, str) else runs:
        paths[f"search.warm_start.runs: {run}"] = run
    for key, value in paths.items():
        url = str(value or "")
        scheme, _, rest = url.rpartition("://")
        path = rest.removeprefix("/") if scheme else rest  # sqlite:///x is relative, as is x
        if url and scheme in ("", "sqlite") and not Path(path).expanduser().is_absolute():
            raise ConfigError(
                "a job runs in a temporary copy of the working directory",
                key=key,
                value=url,
                hint="give the absolute path or URL under which every node reaches it",
            )


def _excludes(working_dir: Path) -> list[str]:
    """`EXCLUDED`, and the virtual environments, whatever their names."""
    found = {
        place.parent
        for marker in ("pyvenv.cfg", "conda-meta")
        for pattern in (f"*/{marker}", f"*/*/{marker}")
        for place in working_dir.glob(pattern)
    }
    return [
        *EXCLUDED,
        *(f"/{place.relative_to(working_dir).as_posix()}/" for place in sorted(found)),
    ]


def _check_size(working_dir: Path, patterns: Sequence[str]) -> None:
    """Refuse to upload more than `MAX_UPLOAD_MB`, before minutes of copying.

    Git lists the files. Without a repository here, Ray refuses what is far too large.
    """
    command = ["git", "ls-files", "-z", "--others", "--cached", "--exclude-standard"]
    command += [f"--exclude={pattern}" for pattern in patterns]
    try:
        listed = subprocess.run(command, cwd=working_dir, capture_output=True, check=False).stdout
    except FileNotFoundError:  # no Git
        return
    sizes = {
        name: path.stat().st_size
        for name in filter(None, os.fsdecode(listed).split("\0"))
        if (path := working_dir / name).is_file()
    }
    total = sum(sizes.values()) / 2**20
    if total > MAX_UPLOAD_MB:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ConfigError(
            f"{total:,.0f} MB would be uploaded to every node, more than {MAX_UPLOAD_MB}",
            key="--working-dir",
            value=str(working_dir),
            hint=f"name large files in .gitignore; the largest: {', '.join(largest)}",
        )


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
