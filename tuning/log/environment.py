"""What the figures of a search depend on beside its configuration: recorded, and compared later.

These are the versions of packages, the machine, the commit of this checkout, and fingerprints of
data, model and plug-ins.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainers.config import TrialConfig
from trainers.data.roots import data_fingerprint, image_counts
from trainers.errors import ConfigError, quoted
from trainers.methods.registry import text_of_file, texts_of
from trainers.models.config import CONFIG, HUB, ModelConfig

logger = logging.getLogger(__name__)

ENVIRONMENT_FILE = "environment.json"
PACKAGES = (
    "lipsum-tune", "ray", "torch", "torchvision", "open_clip_torch", "optuna", "mlflow", "pyarrow",
    "numpy",
)  # fmt: skip
"""Distributions on whose versions results depend."""


def environment(trial: TrialConfig) -> dict[str, object]:
    """The contents of ENVIRONMENT_FILE: versions, machine, seed, what is known of inputs."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "seed": trial.seed,
        "data": data_fingerprint(trial.data),
        "val_images": image_counts(trial.data, "val"),
        "model": _digests(_model_files(trial.model)),
        "plugins": _digests(_plugin_files(trial)),
    }


def seen_at_start(folder: Path, inputs: str = "data") -> dict[str, Any] | None:
    """Section of a run's environment at the start of its search; None if it is not recorded."""
    try:
        found = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))[inputs]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _model_files(model: ModelConfig) -> dict[str, Path]:
    """The files of a model; those of the hub, whose contents may change, as they were fetched."""
    files = {str(file): file for file in model.files}
    if model.name.startswith(HUB):
        from huggingface_hub import try_to_load_from_cache

        from trainers.models.clip import check_model  # imports torch

        check_model(model)  # fetches what is not in the cache
        for name in (CONFIG, "open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
            path = try_to_load_from_cache(model.name.removeprefix(HUB), name)
            if isinstance(path, str):
                files[f"{model.name}/{name}"] = Path(path)
    return files


def _plugin_files(trial: TrialConfig) -> dict[str, Path]:
    """The files of plug-ins; those of modules by name, as they may lie elsewhere later."""
    files = {name: Path(name) for name in trial.plugins if name.endswith(".py")}
    for name, text in texts_of(files).items():  # as imported, which is what workers get
        if files[name].is_file() and text_of_file(name) != text:
            problem = f"{quoted([name])} changed since this process imported it"
            raise ConfigError(problem, key="trial.plugins", hint="start Python again")
    for name in set(trial.plugins) - files.keys():
        spec = importlib.util.find_spec(name)  # plug-ins are imported already, so it is found
        if spec is not None and spec.origin is not None:
            files[name] = Path(spec.origin)
            for folder in spec.submodule_search_locations or ():  # of a package
                for file in Path(folder).rglob("*.py"):
                    files[f"{name}/{file.relative_to(folder)}"] = file
    return files


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file that is on this machine."""
    found = {}
    for name, path in files.items():
        if path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_same_inputs(folder: Path, trial: TrialConfig) -> None:
    """Check that data, files and plug-ins are those with which a run's search began.

    It warns if the data are not known.
    """
    model = trial.model
    for inputs, read, key, value in (
        ("model", lambda: _digests(_model_files(model)), "trial.model.name", model.name),
        ("plugins", lambda: _digests(_plugin_files(trial)), "trial.plugins", ...),
        ("data", lambda: data_fingerprint(trial.data), "trial.data.root", trial.data.root),
    ):
        before = seen_at_start(folder, inputs)
        if before is None and inputs == "data":
            logger.warning("%s does not record its data, so changes cannot be detected", folder)
        if before is None:
            continue
        now = read()
        if changed := [n for n in {**now, **before} if now.get(n) != before.get(n)]:
            raise ConfigError(
                f"{quoted(changed)} changed since this search began",
                key=key,
                value=value,
                hint="restore them, or start a new search with search.warm_start.runs",
            )


def package_version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this checkout, `-dirty` with uncommitted changes; None outside of one."""
    root = Path(__file__).parents[2]  # not a repository in which an installed package may lie
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "--git-dir=.git", "describe", *options]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
