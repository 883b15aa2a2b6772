"""The runs of a confirmation: each trains one configuration with one seed, then reads the test
splits once. They run side by side on Ray, and none takes the others with it when it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from rich.console import Console

from trainers.config import TrialConfig, with_overrides
from tuning.checkpoints.files import remove_folder
from tuning.config.schema import ResourcesConfig, SearchFile
from tuning.confirmation.results import (
    COSTS,
    FT,
    SPLIT,
    Configuration,
    Key,
    ResultsFile,
    TestResult,
)
from tuning.execution.ray_errors import in_one_line, storage_failure
from tuning.execution.ray_session import concurrent_trials
from tuning.execution.trainable import driver_options, final_metrics
from tuning.runs.records import ZERO_SHOT

_SHOWN = (f"id_{SPLIT}/acc", f"ood_{SPLIT}/mean_acc")


@dataclass(frozen=True)
class Job:
    """A configuration and seed to measure."""

    config: TrialConfig
    result: TestResult
    """Still without metrics."""

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return self.result.key

    @property
    def name(self) -> str:
        """Stable: of the line on the console, and of the folder of its checkpoints."""
        trial_id, seed = self.key
        return trial_id if seed is None else f"{trial_id}-seed-{seed}"


def jobs(
    file: SearchFile, configurations: Sequence[Configuration], seeds: Sequence[int]
) -> list[Job]:
    """The zero-shot model, then seed by seed, so that pairs are complete early."""
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
) -> dict[Key, str]:
    """Run them, as many at once as trials fit, and keep each result as soon as it is there.

    Args:
        wanted: in the order in which they start.
        resources: what each takes.
        results: appended to.
        checkpoints: a folder or URL, for those of what is unfinished.
        console: for a line a job.

    Returns:
        Those that failed, and why.

    Raises:
        StorageFailed: results or checkpoints cannot be kept; what was measured is.
    """
    concurrent = concurrent_trials(resources)
    waiting, running = list(reversed(wanted)), dict[Any, Job]()
    failed: dict[Key, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < concurrent:
                job = waiting.pop()
                running[_submit(job, resources, checkpoints)] = job
            (ended,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ended)
            try:
                metrics = _test_metrics(ray.get(ended))
            except Exception as error:
                if failure := storage_failure(error):
                    raise failure from None
                failed[job.key] = reason = in_one_line(error)
                said = f"failed: {reason}"
            else:
                results.append(replace(job.result, metrics=metrics))
                remove_folder(f"{checkpoints}/{job.name}")
                said = "  ".join(f"{n} {metrics[n]:.1f}" for n in _SHOWN if n in metrics)
            number = len(wanted) - len(waiting) - len(running)
            line = f"{job.name}  {said}  ({number} of {len(wanted)})"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    finally:
        for task in running:  # interrupted; what they have trained is in their checkpoints
            ray.cancel(task)
    return failed


def _submit(job: Job, resources: ResourcesConfig, checkpoints: str) -> Any:
    """The job as a task of Ray; one that trains waits for its workers and takes no CPU itself."""
    if job.result.kind == "zero_shot":
        evaluate = ray.remote(
            num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker
        )(_zero_shot_metrics)
        return evaluate.remote(job.config)
    driver: Any = ray.remote(num_cpus=0, **driver_options())
    return driver(final_metrics).remote(
        job.config.model_dump_json(),
        SPLIT,
        name=job.name,
        storage_path=checkpoints,
        resources=resources.per_trial(),
    )


def _zero_shot_metrics(config: TrialConfig) -> dict[str, float]:
    """Of the test splits, with the temperature that the run settles on validation images."""
    from trainers.loop.state import load_split, start

    run = start(config)
    run.evaluate("val", load_split(config, "val"))
    return run.evaluate(SPLIT, load_split(config, SPLIT))


def _test_metrics(report: Mapping[str, float]) -> dict[str, float]:
    prefixes = (f"id_{SPLIT}/", f"ood_{SPLIT}/", f"{SPLIT}/")
    kept = [name for name in report if name.startswith(prefixes) or name in COSTS]
    return {name: float(report[name]) for name in kept}
