"""Submit a search as a job of a Ray cluster, after checks, and follow it to its end.

The job runs `python -m tuning search ... --resume` in a copy of the current directory, so that the
same command resumes its run. The packages that a search needs must be installed on the cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from trainers.data.store import EMBEDDED
from trainers.errors import ConfigError
from trainers.models.config import LOCAL_DIR
from trainers.overrides import flat
from trainers.redact import has_password, is_secret_name
from tuning.config.loading import files_of, is_ready, read_layers
from tuning.config.validation import load_settings

STOP_SECONDS: Final = 20
"""Time between SIGTERM and SIGKILL of a stopped job. Ray's 3 s are too few to save trials."""
EXCLUDED: Final = (
    ".git/", "__pycache__/", "node_modules/", "site-packages/", "conda-meta/", ".venv*/", "/data/",
    "/runs/", "*.arrow", "*.parquet", "*.tar", "mlruns/", "mlflow.db", ".env", ".env.*", ".netrc",
    "*.pem",
    # Keys, tokens and passwords in a home directory.
    ".aws/", ".azure/", ".config/", ".docker/", ".gnupg/", ".kube/", ".ray/", ".ssh/",
)  # fmt: skip
"""Patterns of files that are never uploaded; Ray also reads the .gitignore files that it finds."""

_SQLITE: Final = r"sqlite[^:]*:///?(?!\$)([^?]*)"
_PATHS: Final = {
    "trial.data.root": rf"(?!{EMBEDDED}$|.*://)(.*)",
    "trial.model.name": rf"{LOCAL_DIR}(.*)",
    "trial.model.pretrained": r"(.*\.(?:safetensors|pt|pth|bin))",
    "plugins": r"(.*\.py)",
    "trial.plugins": r"(.*\.py)",
    "search.warm_start.runs": r"(.*)",
    "search.study_storage": _SQLITE,
    "search.tracking.uri": _SQLITE,
}
"""Keys that may name files and folders, and the part of their values that is the path."""

_VISIBLE: Final = (
    "would be visible in the job's command and environment, which Ray shows on its dashboard and "
    "in its logs; set it in the environment of the cluster's nodes"
)


def submit_search(
    config: str,
    overrides: Sequence[str],
    address: str,
    environment: Sequence[str] = (),
    wait: bool = True,
    allow_remote: bool = False,
) -> int:
    """Check a search and submit it as a job.

    Args:
        environment: names of variables to pass to the job.
        wait: print the job's log until it ends.

    Returns:
        The exit status: 1 if the job failed.
    """
    check_address(address, allow_remote)
    for file, _ in files_of(config):
        if not is_ready(file) and not file.resolve().is_relative_to(Path.cwd()):
            problem = "it is not below the current directory, of which the job gets a copy"
            raise ConfigError(problem, source=file)
    config_there = config
    if Path(config).is_file():
        config_there = Path(config).resolve().relative_to(Path.cwd()).as_posix()
    load_settings(config, overrides)
    _check_paths(config, read_layers(config, overrides)[1])
    search = ["python", "-m", "tuning", "search", config_there, "--resume"]
    search += [word for line in overrides for word in ("--set", line)]
    runtime_env = {
        "working_dir": ".",
        "excludes": [*EXCLUDED],
        "env_vars": job_environment(environment, os.environ),
    }
    # Ray's client (2.60) prefers this variable over its argument, and RAY_ADDRESS where it is not
    # set: code and token would go to an address that was not checked.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
    try:
        client = JobSubmissionClient(address, headers=headers)
        job = client.submit_job(entrypoint=shlex.join(search), runtime_env=runtime_env)
    except (OSError, RuntimeError, RayError) as error:
        # The traceback of a head that failed itself ends with the reason.
        problem = str(error).rstrip("\n.").splitlines()[-1]
        hint = "the URL of the dashboard of a Ray that runs; its logs have more"
        raise ConfigError(problem, key="--address", value=address, hint=hint) from error
    print(f"Job '{job}' submitted to {address}", flush=True)
    if not wait:
        return 0
    print(f"Ctrl-C leaves it running; ray job stop --address {address} {job} stops it", flush=True)
    asyncio.run(_print_log(client, job))
    ended = client.get_job_info(job)
    if ended.status != JobStatus.FAILED:
        return 0
    print(f"Job '{job}' failed: {ended.message}")
    return 1


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    """Print the log of a job until the job ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def check_address(url: str, allow_remote: bool) -> None:
    """Raise a ConfigError for an address to which code and token would be sent unencrypted."""
    parts, key = urlsplit(url), "--address"
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("not of the form http://HOST:PORT or https://HOST", key=key, value=url)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://***@{host}"
        raise ConfigError("a URL must not contain a password", key=key, value=shown)
    is_safe = parts.scheme == "https" or host in ("localhost", "127.0.0.1", "::1")
    if not is_safe and not allow_remote:
        risk = f"code and Ray's token would be sent to {host} unencrypted"
        hint = "forward its port to this machine (ssh -L, kubectl port-forward), use https, or add "
        raise ConfigError(risk, key=key, value=url, hint=f"{hint}--allow-remote")


def _check_paths(config: str, values: Mapping[str, Any]) -> None:
    """Refuse what the job would look for in its temporary copy of the directory.

    Args:
        values: as written in the configuration; validated ones have absolute paths.
    """
    settings = flat(values)
    uri = "search.tracking.uri"
    settings[uri] = settings.get(uri) or os.environ.get("MLFLOW_TRACKING_URI")
    for key, pattern in _PATHS.items():
        given = settings.get(key) or ()
        for value in [given] if isinstance(given, str) else given:
            path = re.fullmatch(pattern, value)
            if path and not Path(path[1]).expanduser().is_absolute():
                problem = "a job runs in a temporary copy of the working directory"
                hint = "give the absolute path or URL under which every node reaches it"
                raise ConfigError(problem, key=key, value=value, hint=hint, source=config)


def job_environment(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a job: those named, and settings that every job needs."""
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
