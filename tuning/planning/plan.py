"""What a search will cost, before it starts: `lipsum-tune plan CONFIG`.

Short real trials are timed (`probe`), and the whole search is replayed with their durations
(`cost_model`). References and all proposals are priced like the base trial, whatever method or
number of random texts they have.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
from rich.console import Console

from trainers.config import EvalConfig, with_overrides
from trainers.data.data_root import resolve_root
from trainers.data.dataset import KEEP_BYTES, KEPT_BYTES
from trainers.errors import ConfigError
from tuning.algorithms.early_stopping import rung_ladder
from tuning.algorithms.rung_check import create_rule
from tuning.algorithms.samplers import number_of_trials
from tuning.config.schema import MedianConfig, RungConfig, SearchFile
from tuning.execution.cluster_resources import HEAD
from tuning.execution.ray_session import concurrent_trials, ray_session
from tuning.execution.ray_watch import watched_ray
from tuning.planning.cost_model import Band, Estimate, SearchShape, TrialCost, estimate
from tuning.planning.probe import MAX_PROBES, OVERRIDES, Probe, probe_trials
from tuning.views.formatting import show_phase

KEPT_CHECKPOINTS = 6
"""Of ended trials, weights alone: about one for each rule of selection. References come on top."""
CHECKPOINTS_PER_TRIAL = 2
"""While it runs: the one that is kept, and the one that is being written."""
LEAST_SPREAD = 0.1
"""Steps repeat themselves well, but starts differ by about so much from one to the next."""
AROUND = 3.0
"""What a search does beside Ray, zero-shot model and trials, in units of Ray's start, since it is
work of the same kind: imports and checks, MLflow, report, the end of Ray. Measured: 2.8 to 3.5, 18
to 20 s, on 2 CPU cores at load 5 to 8."""
_MEDIAN_MARKS = 4


@dataclass(frozen=True)
class Plan:
    """A search, what was measured, and what it is expected to cost."""

    file: SearchFile
    probe: Probe
    shape: SearchShape
    estimate: Estimate
    cluster_memory_bytes: int
    """Memory that Ray offers on all nodes, including its object store."""
    head_memory_bytes: int
    """The same on the head alone, where the drivers of all trials run."""

    @property
    def full_trial_hours(self) -> float:
        """Wall clock of one trial that nothing stops."""
        cost = trial_cost(self.probe, self.file.trial.eval)
        return cost.report_times(self.shape.report_steps)[-1] / 3600

    @property
    def device(self) -> str:
        """Unit of the device hours: GPU, or CPU if trials take no GPU."""
        return "GPU" if self.file.search.resources.gpus_per_worker else "CPU"

    @property
    def devices_per_trial(self) -> float:
        """GPUs that a trial reserves, or CPUs if it takes no GPU."""
        resources = self.file.search.resources
        return resources.gpus_per_trial or resources.workers * resources.cpus_per_worker

    @property
    def device_hours(self) -> Band:
        """Reserved GPUs (or CPUs) times hours."""
        return self.estimate.trial_hours * self.devices_per_trial

    @property
    def marks(self) -> list[int]:
        """Steps at which trials may be stopped; a selection if that is at every report."""
        scheduler, total = self.file.search.scheduler, self.shape.total_steps
        if isinstance(scheduler, RungConfig):
            grace_steps = scheduler.first_step(total, self.shape.eval_every)
            return rung_ladder(grace_steps, scheduler.reduction_factor, total)
        if isinstance(scheduler, MedianConfig):
            grace_steps = scheduler.first_step(total, self.shape.eval_every)
            steps = [s for s in self.shape.report_steps if grace_steps <= s < total]
            return steps[:: math.ceil(len(steps) / _MEDIAN_MARKS)] if steps else []
        return []

    @property
    def trial_memory_bytes(self) -> int:
        """Peak resident memory of a trial's processes, with the images that its workers keep.

        Probes evaluate all images, and their memory includes those that stay decoded; what is added
        are the samples of the domains that are evaluated in part before the last step.
        """
        size, workers = self.file.trial.eval.rung_images, self.file.search.resources.workers
        sampled = sum(0 < size < number for number in self.probe.val_images)
        of_domain = math.ceil(size / workers) * self.probe.view_bytes
        kept = min(KEPT_BYTES, sampled * of_domain) if of_domain <= KEEP_BYTES else 0
        return self.probe.memory_bytes + self.probe.head_bytes + workers * kept

    @property
    def running_checkpoint_bytes(self) -> int:
        """Checkpoints of the trials that run at once."""
        return self.shape.concurrent * CHECKPOINTS_PER_TRIAL * self.probe.checkpoint_bytes

    @property
    def peak_checkpoint_bytes(self) -> int:
        """Checkpoints of running trials, and the weights that are kept of ended ones."""
        search = self.file.search
        asked_for = min(search.checkpoints.keep_top, search.budget.trials)
        kept = KEPT_CHECKPOINTS + self.shape.references + asked_for
        kept += len(search.space.methods)  # the best of each
        return self.running_checkpoint_bytes + kept * self.probe.weights_bytes

    @property
    def budgets(self) -> list[tuple[str, float, Band, float]]:
        """For each budget of hours: key, value, need of the search, and of one trial."""
        budget, estimate = self.file.search.budget, self.estimate
        found = []
        if budget.hours is not None:
            one = self.full_trial_hours + self.shape.setup_s / 3600
            found.append(("search.budget.hours", budget.hours, estimate.hours, one))
        if budget.gpu_hours is not None:
            one = self.full_trial_hours * self.devices_per_trial
            found.append(("search.budget.gpu_hours", budget.gpu_hours, self.device_hours, one))
        return found

    @property
    def warnings(self) -> list[str]:
        """What may go wrong, one sentence each."""
        return list(_warnings(self))


def plan_search(
    file: SearchFile, *, address: str | None = None, console: Console | None = None
) -> Plan:
    """Probe the machine, and estimate the cost of the search of this configuration there.

    Args:
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for progress; by default the terminal's standard error.

    Raises:
        ConfigError: too few resources, no such data, or the base trial fails in its first steps.
    """
    console = console or Console(stderr=True)
    resolve_root(file.trial.data.root, progress=True)
    search = file.search
    began = time.perf_counter()
    with (
        ray_session(address, console=console),
        watched_ray(),
        _scratch(Path(search.storage).expanduser().resolve()) as folder,
    ):
        start_s = time.perf_counter() - began
        trials = number_of_trials(file)
        concurrent = min(concurrent_trials(search.resources), trials + len(search.references))
        probes = min(concurrent, MAX_PROBES)
        base = with_overrides(file.trial, OVERRIDES, "trial")
        what = f"opening the images, and timing the first steps of {probes} trial(s) side by side"
        show_phase(console, "Probe", what)
        with console.status(what):
            probe = probe_trials(
                base.model_dump_json(),
                search.resources.model_copy(update={"max_failures": 0}),
                folder,
                probes,
            )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shape = SearchShape(
        trials=trials,
        total_steps=file.trial.steps,
        eval_every=file.trial.eval.every,
        concurrent=concurrent,
        references=len(search.references),
        objectives=len(file.objectives),
        methods=max(1, len(file.search.space.methods)),
        # The zero-shot model is evaluated, then workers start, which stay from trial to trial.
        setup_s=(1 + AROUND) * start_s + probe.load_s + probe.first_eval_s + probe.startup_s,
    )
    with console.status("Replaying the search"):
        cost = trial_cost(probe, file.trial.eval)
        # The trials that are compared with each other.
        of_method = math.ceil(trials / shape.methods)
        new_rule = partial(
            create_rule, search.scheduler, shape.total_steps, of_method, shape.eval_every
        )
        expected = estimate(shape, cost, new_rule, seed=search.sampler.seed)
    memory = [n.get("memory", 0) + n.get("object_store_memory", 0) for n in nodes]
    on_head = [size for node, size in zip(nodes, memory, strict=True) if HEAD in node]
    return Plan(file, probe, shape, expected, int(sum(memory)), int(sum(on_head)))


def check_budget(plan: Plan) -> None:
    """Refuse a search whose budget is too small.

    Raises:
        ConfigError: a budget of hours is below the low end of the estimate, or below one trial.
    """
    for key, budget, needs, one_trial in plan.budgets:
        if budget < one_trial:
            raise ConfigError(
                f"{key} = {budget:g}: not even one trial of {plan.shape.total_steps} steps fits, "
                f"which takes {_hours(one_trial)} h"
            )
        if budget < needs.low:
            raise ConfigError(
                f"{key} = {budget:g}: the search needs {_hours(needs.median)} h "
                f"({_hours(needs.low)} to {_hours(needs.high)})"
            )


def trial_cost(probe: Probe, evaluation: EvalConfig) -> TrialCost:
    """Durations of a trial, as probed, with its evaluations in part and those of its line."""
    size = evaluation.rung_images
    at_rungs = [min(size or number, number) for number in probe.val_images]
    share = sum(at_rungs) / sum(probe.val_images)
    on_line = len(evaluation.line_points) + 1 if evaluation.line_points else 0  # and the end
    return TrialCost(
        startup_s=probe.restart_s,
        step_s=probe.step_s,
        eval_s=(1 + on_line * share) * probe.eval_s + probe.save_s,
        rung_s=share * probe.eval_s + probe.save_s,
        spread=max(probe.step_spread, LEAST_SPREAD),
    )


def _warnings(plan: Plan) -> Iterator[str]:
    probe, concurrent = plan.probe, plan.shape.concurrent
    for key, budget, needs, _ in plan.budgets:
        if needs.low <= budget < needs.median:
            yield f"{key} = {budget:g} is likely to end the search before its last trial"
    memory, on_head = concurrent * plan.trial_memory_bytes, concurrent * probe.head_bytes
    if memory > plan.cluster_memory_bytes:
        yield (
            f"{concurrent} trials at once take {gigabytes(memory)} of memory, and the cluster has "
            f"{gigabytes(plan.cluster_memory_bytes)}: lower search.resources.max_concurrent"
        )
    if on_head > plan.head_memory_bytes:
        yield (
            f"the drivers of {concurrent} trials at once take {gigabytes(on_head)} "
            f"of the head's memory, and it has {gigabytes(plan.head_memory_bytes)}: lower "
            "search.resources.max_concurrent, or take a larger head"
        )
    a_gpu = max(1, int(1 / (plan.file.search.resources.gpus_per_worker or 1)))
    if a_gpu * probe.gpu_memory_bytes > probe.gpu_total_bytes:
        yield (
            f"{a_gpu} workers on a GPU take {gigabytes(a_gpu * probe.gpu_memory_bytes)}, and it "
            f"has {gigabytes(probe.gpu_total_bytes)}: raise search.resources.gpus_per_worker"
        )
    if methods := plan.file.search.space.methods:
        yield (
            f"{len(methods)} methods are priced like one, trial.method.name = "
            f"{plan.file.trial.method.name!r}; those that also train the text encoder cost more"
        )
    ranks_raw = plan.file.trial.eval.rung_weights == "raw"
    is_given = getattr(plan.file.search.scheduler, "grace_steps", None) is not None
    if is_given and ranks_raw and plan.marks and plan.marks[0] < plan.shape.total_steps * 0.75:
        yield (
            f"search.scheduler.grace_steps = {plan.marks[0]} is early: before three quarters of "
            "the steps, while the learning rate is high, the best trials may look worse than those "
            "that hardly move the model; trial.eval.rung_weights = averaged helps"
        )


def gigabytes(count: float) -> str:
    """Bytes as text, such as `0.013 GB` (of 10^9 bytes)."""
    return f"{count / 1e9:.2g} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"


@contextmanager
def _scratch(storage: Path) -> Iterator[Path]:
    """A temporary folder where the checkpoints of the search will be."""
    new = [folder for folder in (storage, *storage.parents) if not folder.exists()]
    try:
        storage.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".plan-", dir=storage)
    except OSError as error:
        raise ConfigError(f"search.storage = {str(storage)!r}: {error}") from None
    try:
        with scratch as name:
            yield Path(name)
    finally:
        for folder in new:
            with suppress(OSError):  # another process may have written into it
                folder.rmdir()
