"""The zero-shot metrics of a search: evaluated on the cluster, and cached on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
import ray
import torch

import trainers
from trainers.config import TrialConfig
from trainers.data.fingerprint import data_fingerprint
from trainers.errors import ConfigError
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from trainers.models.config import HUB
from trainers.process_state import restored_state
from trainers.ray_trainer import task_device
from tuning.config.schema import ELSEWHERE, ResourcesConfig
from tuning.execution.ray_errors import root_cause
from tuning.runs.environment import package_version

CACHE_VARIABLE = "LIPSUM_TUNE_ZERO_SHOT_CACHE"
"""Environment variable that names another folder for the cache."""


def zero_shot_metrics(
    trial: TrialConfig, resources: ResourcesConfig, *, here: bool = False
) -> dict[str, float]:
    """The validation metrics of a trial before its first step, from the cache if they are there.

    The cache has one file for each fingerprint. Files are replaced in one piece, so any number of
    searches may write at the same time. A cache that cannot be read or written is not used.

    Args:
        here: evaluate in this process if trials take no GPU, as all of them run on this machine.

    Raises:
        ConfigError: data or model cannot be loaded.
    """
    fingerprint = _fingerprint(trial, resources)
    cached = _folder() / f"{fingerprint}.json"
    if fingerprint is not None:
        with suppress(OSError, ValueError):
            found: dict[str, float] = json.loads(cached.read_text(encoding="utf-8"))
            return found
    if here and not resources.gpus_per_worker:
        metrics = _evaluate_here(trial, resources)
    else:
        metrics = _evaluate_on_cluster(trial, resources)
    if fingerprint is not None:
        with suppress(OSError):
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=cached.parent, suffix=".tmp", encoding="utf-8", delete=False
            ) as file:
                json.dump(metrics, file)
            Path(file.name).replace(cached)
    return metrics


def _evaluate_here(trial: TrialConfig, resources: ResourcesConfig) -> dict[str, float]:
    """Evaluate without a process that would have to import all that this one has imported."""
    with restored_state():
        if "OMP_NUM_THREADS" not in os.environ:  # as Ray does for a worker
            torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
        return evaluate_run(start(trial, device="cpu"), "val", load_split(trial, "val"))


def _evaluate_on_cluster(trial: TrialConfig, resources: ResourcesConfig) -> dict[str, float]:
    """Evaluate on the hardware on which trials run."""
    remote = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
    try:
        metrics: dict[str, float] = ray.get(remote(_evaluate).remote(trial))
    except ConfigError as error:  # Ray adds the traceback of the worker
        raise root_cause(error) from None
    return metrics


def _evaluate(trial: TrialConfig) -> dict[str, float]:
    return evaluate_run(start(trial, device=task_device()), "val", load_split(trial, "val"))


def _folder() -> Path:
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("lipsum-tune") / "zero_shot"


def _fingerprint(trial: TrialConfig, resources: ResourcesConfig) -> str | None:
    """A hash of all that the metrics depend on; None if they depend on unknown files."""
    model = trial.model
    if model.name.startswith(HUB) or trial.plugins:
        return None
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in model.files]
    values: dict[str, Any] = {
        "model": model.model_dump(mode="json"),
        "files": files,
        "data": trial.data.model_dump(mode="json", exclude=set(ELSEWHERE)),
        "images": data_fingerprint(trial.data),
        "method": trial.method.model_dump(mode="json"),
        "batch_size": trial.eval.batch_size,
        "precision": trial.precision,
        "compile": trial.compile,
        "gpus": resources.gpus_per_worker > 0,
        "accelerators": sorted(k for k in ray.cluster_resources() if "accelerator_type" in k),
        "packages": {n: package_version(n) for n in ("torch", "torchvision", "open_clip_torch")},
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _code() -> str:
    """A hash of the source of `trainers`, so that a changed evaluation is run again."""
    digest = hashlib.sha256()
    for file in sorted(Path(trainers.__path__[0]).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
