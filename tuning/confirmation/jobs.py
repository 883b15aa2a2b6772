"""The jobs of a confirmation: train one configuration with one seed, then read the test splits.

Jobs run side by side on Ray; a job that fails does not affect the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Final, Literal

import ray
from rich.console import Console

from trainers.config import TrialConfig, with_overrides
from trainers.data.storage import url_of
from trainers.evaluation.metrics import ID, ID_ACC, MEAN_OOD, OOD_MEAN_ACC, MetricKey
from trainers.ray_trainer import task_device
from tuning.checkpoints.files import remove_folder
from tuning.config.schema import ResourcesConfig, SearchFile
from tuning.confirmation.results import (
    COSTS,
    END,
    FT,
    SPLIT,
    Configuration,
    Key,
    ResultsFile,
    TestResult,
)
from tuning.execution.cluster_resources import driver_options
from tuning.execution.ray_errors import in_one_line, storage_failure
from tuning.execution.ray_session import concurrent_trials
from tuning.execution.retries import TrainingDriver
from tuning.execution.tasks import run_tasks
from tuning.execution.trainable import OVERDUE
from tuning.runs.records import ZERO_SHOT

_PRINTED: Final = (str(MetricKey(SPLIT, ID, "acc")), str(MetricKey(SPLIT, MEAN_OOD, "acc")))


@dataclass(frozen=True)
class Job:
    """A configuration and seed to measure."""

    config: TrialConfig
    result: TestResult
    """Still without metrics."""

    @property
    def name(self) -> str:
        """Name on the console and of the folder of checkpoints, the same in every call."""
        seed = self.result.seed
        return self.result.trial_id + ("" if seed is None else f"-seed-{seed}")


def jobs(
    file: SearchFile, configurations: Sequence[Configuration], seeds: Sequence[int]
) -> list[Job]:
    """The zero-shot model, then all configurations seed by seed, so that pairs complete early."""
    found = [Job(file.trial, TestResult(ZERO_SHOT, "zero_shot", None, {}, (), {}))]
    for seed in seeds:
        for configuration in configurations:
            trial_id, params = configuration.trial_id, configuration.params
            is_ft = trial_id == FT
            base = file.reference_config(FT) if is_ft else file.trial_config(params)
            kind: Literal["trial", "reference"] = "reference" if is_ft else "trial"
            searched = {key: value for key, value in params.items() if key != "seed"}
            result = TestResult(trial_id, kind, seed, searched, configuration.labels, {})
            found.append(Job(with_overrides(base, {"seed": seed}, "confirm"), result))
    return found


def run_jobs(
    wanted: Sequence[Job],
    resources: ResourcesConfig,
    results: ResultsFile,
    checkpoints: str,
    console: Console,
    chosen_by: Collection[str] = (),
) -> dict[Key, str]:
    """Run jobs, as many at once as trials fit, and store each result as soon as it is known.

    Unfinished jobs have checkpoints in a folder or URL, from which the next call continues.

    Args:
        chosen_by: validation metrics of the search's objectives and constraints.

    Returns:
        The jobs that failed, with the error in one line.

    Raises:
        StorageFailed: results or checkpoints cannot be written; earlier results are kept.
    """
    failed: dict[Key, str] = {}
    numbers = count(1)

    def on_end(job: Job, task: Any) -> None:
        try:
            metrics = kept_metrics(ray.get(task), chosen_by)
        except Exception as error:
            if failure := storage_failure(error):
                raise failure from None
            failed[job.result.key] = reason = in_one_line(error)
            text = f"failed: {reason}"
        else:
            results.append(replace(job.result, metrics=metrics))
            remove_folder(url_of(checkpoints, job.name))
            text = "  ".join(f"{n} {metrics[n]:.1f}" for n in _PRINTED if n in metrics)
        line = f"{job.name}  {text}  ({next(numbers)} of {len(wanted)})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    submit = partial(_submit, resources=resources, checkpoints=checkpoints)
    run_tasks(wanted, submit, on_end, at_once=concurrent_trials(resources))
    return failed


def _submit(job: Job, resources: ResourcesConfig, checkpoints: str) -> Any:
    """Start a job on Ray. The driver of a training reserves no CPU, since its workers do."""
    if job.result.kind == "zero_shot":
        evaluate = ray.remote(
            num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker
        )(_zero_shot_metrics)
        return evaluate.remote(job.config)
    repeated = {"max_restarts": 3, "max_task_retries": 3}  # the number of Ray's tasks
    actor: Any = ray.remote(TrainingDriver)
    driver = actor.options(num_cpus=0, **repeated, **driver_options()).remote()
    return driver.fit.remote(
        job.config.model_dump_json(),
        name=job.name,
        storage_path=checkpoints,
        resources=resources,
        final_split=SPLIT,
        # No report of the search took as long as one with the test splits may take.
        limit_s=OVERDUE * resources.hang_after_s,
    )


def _zero_shot_metrics(config: TrialConfig) -> dict[str, float]:
    """Metrics on the test splits, with the temperature calibrated on validation images."""
    from trainers.loop.evaluate_run import evaluate_run
    from trainers.loop.state import load_split, start

    run = start(config, device=task_device())
    evaluate_run(run, "val", load_split(config, "val"))
    return evaluate_run(run, SPLIT, load_split(config, SPLIT))


def kept_metrics(report: Mapping[str, float], chosen_by: Collection[str] = ()) -> dict[str, float]:
    """The metrics of the test splits, the costs of training, and a few of the validation splits.

    These show how much the seed alone changes what the search compared, and `verdict` needs them.
    """
    keys = {name: MetricKey.parse(name.removeprefix(END)) for name in report}
    kept = {*COSTS, ID_ACC, OOD_MEAN_ACC, "line/a", *chosen_by}
    return {
        name: float(report[name])
        for name, key in keys.items()
        if name in kept or (key is not None and key.split == SPLIT)
    }
