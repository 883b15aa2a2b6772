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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from trainers.data.store import EMBEDDED
from trainers.errors import ConfigError, first_line
from trainers.overrides import flat
from trainers.redact import has_password, is_secret_name
from tuning.config.loading import read_layers
from tuning.config.recorded import FREE, compared
from tuning.config.schema import SearchFile
from tuning.config.validation import check_settings, load_config
from tuning.execution.signals import environment_variables

STOP_SECONDS = 20
"""Time between SIGTERM and SIGKILL of a stopped job. Ray's 3 s are too few to save trials."""
EXCLUDED = (
    ".git/", "__pycache__/", "node_modules/", "site-packages/", "conda-meta/", ".venv*/", "/data/",
    "/runs/", "*.arrow", "*.parquet", "*.tar", "mlruns/", "mlflow.db", ".env", ".env.*", ".netrc",
    "*.pem",
    # Keys, tokens and passwords in a home directory.
    ".aws/", ".azure/", ".config/", ".docker/", ".gnupg/", ".kube/", ".ray/", ".ssh/",
)  # fmt: skip
"""Patterns of files that are never uploaded; Ray also reads the .gitignore files that it finds."""
MAX_UPLOAD_MB = 100
"""Of the working directory: code and configurations are smaller, and every node gets a copy."""

_VISIBLE = (
    "would be visible in the job's command and environment, which Ray shows on its dashboard and "
    "in its logs; set it in the environment of the cluster's nodes"
)


@dataclass(frozen=True)
class Job:
    """A job on the cluster."""

    address: str
    submission_id: str
    is_new: bool
    """False if the same search was running already."""
    storage: str
    warning: str | None = None

    def description(self) -> list[str]:
        """Lines for the terminal: id, run folder, and commands to follow and stop the job."""
        state = "" if self.is_new else "  (it was running already: nothing was submitted)"
        runs, where = self.storage, f"--address {self.address} {self.submission_id}"
        if not Path(runs).expanduser().is_absolute():  # the log has the absolute path
            runs = f"~/lipsum-tune/{runs} on the head node"
        return [
            *([f"warning: {self.warning}"] if self.warning else ()),
            f"Job         {self.submission_id}{state}",
            f"Runs in     {runs}",
            f"Logs        ray job logs --follow {where}",
            f"Dashboard   {self.address}/#/jobs/{self.submission_id}",
            f"Stop        ray job stop {where}; the same `lipsum-tune submit` resumes it",
        ]


def submit_search(
    config: str,
    overrides: Sequence[str],
    working_dir: Path,
    address: str,
    environment: Sequence[str] = (),
    allow_remote: bool = False,
) -> Job:
    """Submit the search, unless it is running already.

    Args:
        config: path of a YAML file in the working directory, or name of a ready configuration.
        working_dir: folder that is uploaded, except for `EXCLUDED`.
        environment: names of variables to pass to the job.
        allow_remote: allow plain http to another machine.

    Raises:
        ConfigError: the configuration is wrong (data and resources are those of the cluster), a
            path in it is relative, the upload is too large, a variable is missing or holds a
            secret, or no job server answers.
    """
    address = address.rstrip("/")
    warning = _check_address(address, allow_remote)
    working_dir, config_there = working_dir.resolve(), config
    if Path(config).is_file():
        if not Path(config).resolve().is_relative_to(working_dir):
            hint = "copy it there, or choose another directory with --working-dir"
            problem = f"it is not in the job's working directory {working_dir}"
            raise ConfigError(problem, hint=hint, source=config)
        config_there = Path(config).resolve().relative_to(working_dir).as_posix()
    file = load_config(config, overrides, check=False)
    try:
        check_settings(file)
        _check_paths(read_layers(config, overrides)[1])
    except ConfigError as error:
        raise error.within(config) from None
    _check_size(working_dir)

    command = ["python", "-m", "tuning", "search", config_there, "--resume"]
    command += [argument for line in overrides for argument in ("--set", line)]
    env_vars = job_environment(environment, os.environ)
    runtime_env = {"working_dir": str(working_dir), "excludes": [*EXCLUDED], "env_vars": env_vars}
    base, jobs = submission_base(file), dict[int, JobDetails]()
    hint = "start a cluster there with `ray start --head`, or give the --address of another"
    hint += "" if os.environ.get("RAY_AUTH_MODE") else "; is RAY_AUTH_MODE=token missing here?"
    with _answers(address, hint):
        client = job_client(address)
        # The first job of a search has the base as its id, the n-th `base-n`.
        for job in client.list_jobs():
            if found := re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", job.submission_id or ""):
                jobs[int(found[1] or 1)] = job
    running = [number for number, job in jobs.items() if not job.status.is_terminal()]
    if running:
        job_id = str(jobs[max(running)].submission_id)
        return Job(address, job_id, False, file.search.storage, warning)
    job_id = f"{base}-{max(jobs) + 1}" if jobs else base
    with _answers(address, "the same command tries again, or finds the job"):
        client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=job_id,
            runtime_env=runtime_env,
            metadata={"lipsum-tune": file.search.name},
        )
    return Job(address, job_id, True, file.search.storage, warning)


def _check_address(url: str, allow_remote: bool) -> str | None:
    """A warning for an address to which code and token would be sent unencrypted; else None."""
    parts, key = urlsplit(url), "--address"
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("not of the form http://HOST:PORT or https://HOST", key=key, value=url)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://***@{host}"
        raise ConfigError("a URL must not contain a password", key=key, value=shown)
    if parts.scheme == "https" or host in ("localhost", "127.0.0.1", "::1"):
        return None
    risk = f"code and Ray's token would be sent to {host} unencrypted"
    if allow_remote:
        return risk
    hint = "forward its port to this machine (ssh -L, kubectl port-forward), use https, or add "
    raise ConfigError(risk, key=key, value=url, hint=f"{hint}--allow-remote")


@contextmanager
def _answers(address: str, hint: str | None) -> Iterator[None]:
    """Raise a ConfigError if Ray's job client gets no usable answer within the block."""
    try:
        yield
    # Errors of `requests` are OSErrors.
    except (OSError, RuntimeError, ValueError, ClientError, AuthenticationError) as error:
        raise ConfigError(first_line(error), key=f"--address {address}", hint=hint) from None


def follow(job: Job) -> int:
    """Print the job's logs until it ends, by Ray's own command.

    Returns:
        The exit status of the search. 130 if the job was stopped, or if Ctrl-C ended the following,
        which leaves the job running. 1 if the connection was lost.
    """
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    command = [*ray, "job", "logs", "--follow", "--address", job.address, job.submission_id]
    try:
        with environment_variables({"RAY_API_SERVER_ADDRESS": job.address}):
            # In a group of its own: Ctrl-C would make it print `Aborted!`.
            subprocess.run(command, check=False, process_group=0)
        with _answers(job.address, "the job may still run: the same command follows it again"):
            details = job_client(job.address).get_job_info(job.submission_id)
    except KeyboardInterrupt:
        print("\nThe job continues. The same command follows it again.", file=sys.stderr)
        return 130
    print(f"Job {job.submission_id}  {details.status}", file=sys.stderr)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return 130 if details.status == JobStatus.STOPPED else details.driver_exit_code or 1


def _check_paths(values: Mapping[str, Any]) -> None:
    """Refuse what the job would read from, or write to, its temporary copy of the directory.

    Args:
        values: as written in the configuration; validated ones have absolute paths.
    """
    settings, runs_key = flat(values), "search.warm_start.runs"
    keys = ("trial.data.root", "search.study_storage", "search.tracking.uri")
    runs = settings.get(runs_key, ())
    paths = {key: settings.get(key) for key in keys}
    paths |= {f"{runs_key}: {run}": run for run in ([runs] if isinstance(runs, str) else runs)}
    for key in ("plugins", "trial.plugins"):
        named = (str(one) for one in settings.get(key) or ())
        paths |= {f"{key}: {one}": one for one in named if one.endswith(".py")}
    for key in ("trial.model.name", "trial.model.pretrained"):
        given = str(settings.get(key) or "")
        is_file = given.endswith((".safetensors", ".pt", ".pth", ".bin"))
        if is_file or given.startswith("local-dir:"):
            paths[key] = given.removeprefix("local-dir:")
    for key, value in paths.items():
        url = str(value or "")
        scheme, _, rest = url.rpartition("://")
        path = rest.removeprefix("/") if scheme else rest  # sqlite:///x is relative, as is x
        is_local = url not in ("", EMBEDDED) and scheme in ("", "sqlite")
        if is_local and not Path(path).expanduser().is_absolute():
            problem = "a job runs in a temporary copy of the working directory"
            hint = "give the absolute path or URL under which every node reaches it"
            raise ConfigError(problem, key=key, value=url, hint=hint)


def _check_size(working_dir: Path) -> None:
    """Refuse to upload more than `MAX_UPLOAD_MB`. Without Git, only Ray's own limit holds."""
    command = ["git", "ls-files", "-z", "--others", "--cached", "--exclude-standard"]
    command += [f"--exclude={pattern}" for pattern in EXCLUDED]
    if shutil.which("git") is None:
        return
    listed = subprocess.run(command, cwd=working_dir, capture_output=True, check=False).stdout
    sizes = {
        name: path.stat().st_size
        for name in filter(None, os.fsdecode(listed).split("\0"))
        if (path := working_dir / name).is_file()
    }
    total = sum(sizes.values()) / 2**20
    if total > MAX_UPLOAD_MB:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        problem = f"{total:,.0f} MB would be uploaded to every node, more than {MAX_UPLOAD_MB}"
        hint = f"name large files in .gitignore; the largest: {', '.join(largest)}"
        raise ConfigError(problem, key="--working-dir", value=str(working_dir), hint=hint)


def submission_base(file: SearchFile) -> str:
    """Id of the search's first job, equal for all configurations that resume the same run."""
    text = json.dumps(compared(file, FREE), sort_keys=True)
    return f"{file.search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def job_environment(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a job: those named, and settings that every job needs.

    Raises:
        ConfigError: a variable is not set, or holds a secret.
    """
    for name in names:
        if name not in environment:
            raise ConfigError("not set in this environment", key=f"--env {name}")
        if is_secret_name(name) or has_password(environment[name]):
            raise ConfigError(f"it looks like a secret, which {_VISIBLE}", key=f"--env {name}")
    uri, hint = "MLFLOW_TRACKING_URI", "write ${NAME} in place of the password"
    if has_password(environment.get(uri, "")):
        raise ConfigError(f"its password {_VISIBLE}", key=uri, hint=hint)
    always = ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")
    passed = (*(name for name in always if name in environment), *names)
    return {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        "COLUMNS": str(shutil.get_terminal_size((120, 40)).columns),  # width of tables in the logs
        **{name: environment[name] for name in passed},
    }


def job_client(address: str) -> JobSubmissionClient:
    """Connect to the job server at an address.

    Ray's client (2.60) prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS over its own argument: code
    and token would go to an address that `_check_address` has not seen.
    """
    # These loggers list every excluded file, and all connections.
    for name in ("ray", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with environment_variables({"RAY_API_SERVER_ADDRESS": address}):
        return JobSubmissionClient(address)
