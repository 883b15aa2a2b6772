"""What one search is: a `SearchFile` of two sections, frozen and validated.

`trial:` is the base `TrialConfig`; `search:` says what is varied, how it is proposed and stopped,
what is maximised, and on which resources. `tuning.config.validation` reads and checks it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from search_spaces import SearchSpace
from trainers.config import TrialConfig, with_overrides
from trainers.data.suite import Suite
from trainers.errors import ConfigError, validate
from trainers.evaluation.evaluate import metric_names
from trainers.frozen import Frozen
from tuning.algorithms.objectives import Constraint, Objective, check_constraints, parse_constraint
from tuning.config.early_stopping import NoSchedulerConfig, SchedulerConfig
from tuning.config.search_space import SpaceConfig, resolve_space
from tuning.runs.records import METHOD_KEY


class SamplerConfig(Frozen):
    """Who proposes configurations: one of Optuna's samplers."""

    name: Literal["tpe", "gp", "cma_es", "nsga2", "qmc", "grid", "random"] = "tpe"
    seed: int = Field(default=0, ge=0)
    startup_trials: int = Field(default=6, ge=1)
    """Random proposals before `tpe`, `gp` or `cma_es` learns; the population of `nsga2`. Where
    methods are compared, so many of each."""
    grid_points: int = Field(default=4, ge=2)
    """Of `grid`: values of each numeric parameter, evenly spaced on its scale."""


class ObjectiveConfig(Frozen):
    """What is optimised, at the last step of a trial. Validation splits only."""

    metric: str = "val/mean_acc"
    mode: Literal["max", "min"] = "max"


class BudgetConfig(Frozen):
    """What ends the search, whichever comes first; all of it counts through every resume.

    At `trials` and `patience`, nothing new is proposed and what runs may finish. At the others,
    running trials are stopped where they are; a resume with more budget takes them up again.
    """

    trials: int = Field(default=20, ge=1)
    """Trials that are proposed, for all methods together; references come on top."""
    hours: float | None = Field(default=None, gt=0)
    """Wall clock in which the search runs."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """GPUs reserved, times the hours: partial, failed and repeated trials and references too."""
    target: float | None = None
    """A value of the objective that is good enough."""
    patience: int | None = Field(default=None, ge=1)
    """Ended trials in a row that did not improve on the best, each on that of its method."""


class CheckpointsConfig(Frozen):
    """Where the search keeps the checkpoints of its trials, and how many of them."""

    storage: str | None = None
    """A folder or URL (`s3://bucket/x`) in which each search gets a folder of its own; null is the
    run folder. Every node must reach it. The run folder itself stays on a disk: its journal is
    appended to line by line, which a bucket cannot do."""
    disk_gb: float | None = Field(default=None, gt=0)
    """Of all checkpoints together (10^9 bytes). Those of running trials are never given up."""
    keep_top: int = Field(default=0, ge=0)
    """The weights of so many finished trials, the best by the objective, are kept in any case: for
    `lipsum-tune soup` and `export`. 0 keeps those that a selection rule may choose."""

    @field_validator("storage")
    @classmethod
    def _is_absolute(cls, storage: str | None) -> str | None:
        if storage is None or "://" in storage:
            return storage
        folder = Path(storage).expanduser()
        if not folder.is_absolute():  # of which folder? each node has its own
            raise ValueError("neither an absolute path nor a URL")
        return str(folder)

    @property
    def disk_bytes(self) -> int | None:
        """The same in bytes."""
        return None if self.disk_gb is None else int(self.disk_gb * 1e9)


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Mapping | ObjectiveConfig) else value


_Lines = Annotated[tuple[str, ...], BeforeValidator(_one_or_several)]


class WarmStartConfig(Frozen):
    """Earlier searches to learn from."""

    runs: _Lines = ()
    """Their run folders."""
    use: Literal["auto", "observations", "points"] = "auto"
    """`observations` tells the sampler what they measured, `points` tries their best first; `auto`
    is observations where trial and data are the same, else points."""
    top: int = Field(default=4, ge=1)
    """Of each run, how many points to try first."""


class ResourcesConfig(Frozen):
    """What one trial takes; how many run at once follows from what the cluster has."""

    workers: int = Field(default=1, ge=1)
    """Data-parallel processes a trial."""
    min_workers: int | None = Field(default=None, ge=1)
    """A number makes trials elastic: with so many workers they start, or go on when a node is lost,
    where there is no room for `workers`. Ray looks for room again every minute; a trial that grows
    goes on from its last checkpoint. Figures are those of `workers` up to rounding."""
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    """May be a fraction: several trials of one worker then share a GPU."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Of the workers of a trial: on few nodes, over many; the strict ones on one node, or each on
    another, or not at all."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """A ceiling on the trials at once; null takes all that fits. Where the cluster has an
    autoscaler, so many run as it adds nodes."""
    max_failures: int = Field(default=3, ge=0)
    """Lost workers or nodes that a trial survives by going on from its last checkpoint. What a
    training itself raises is not tried again."""
    preemption_grace_s: float = Field(default=0, ge=0)
    """A node that announces its end (a spot node) has its trials saved at once, and they train on
    until it is gone; on other nodes they may for so long after. Such losses are not counted."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_whole_or_a_fraction(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("more than one GPU, but not a whole number of them")
        return gpus

    @model_validator(mode="after")
    def _fits_together(self) -> ResourcesConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers = {self.min_workers}: more than workers = {self.workers}"
            )
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} with workers = {self.workers}: NCCL "
                "refuses two workers of one trial on one GPU; give each a whole one, or the trial "
                "one worker"
            )
        return self

    @property
    def sizes(self) -> range:
        """The numbers of workers that a trial may have."""
        return range(self.min_workers or self.workers, self.workers + 1)

    @property
    def gpus_per_trial(self) -> float:
        """GPUs that a trial reserves."""
        return self.workers * self.gpus_per_worker

    def per_trial(self) -> dict[str, Any]:
        """What `tuning.execution.retries.fit` is told."""
        return self.model_dump(exclude={"max_concurrent"})


class TrackingConfig(Frozen):
    """Where MLflow keeps the record."""

    uri: str | None = None
    """Any tracking URI; null is a SQLite database in the folder of runs. A password in it is
    written `${NAME}`, and taken from the environment."""
    experiment: str = "lipsum-tune"


class SearchConfig(Frozen):
    """The `search:` section."""

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run folder, the MLflow run and the Optuna study."""
    space: SpaceConfig = SpaceConfig()
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = NoSchedulerConfig()
    objective: Annotated[
        tuple[ObjectiveConfig, ...], BeforeValidator(_one_or_several), Field(min_length=1)
    ] = (ObjectiveConfig(),)
    """One, or a list of several."""
    constraints: _Lines = ()
    """One line or several, such as `id_val/acc >= zero_shot.id_val/acc`; see
    `tuning.algorithms.objectives`."""
    warm_start: WarmStartConfig = WarmStartConfig()
    budget: BudgetConfig = BudgetConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    references: tuple[Literal["ft"], ...] = ("ft",)
    """Run beside the search for comparison, with the trial's own settings, never stopped early."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    study_storage: str | None = None
    """A database for the Optuna study, `postgresql+psycopg://user:${PASSWORD}@host/name`, not the
    one of MLflow; null is a journal file in the run folder."""
    storage: str = "runs"
    """Folder of run folders; on several nodes, one that all of them reach, unless the checkpoints
    have a storage of their own."""


ELSEWHERE = ("root", "workers", "cache_gb")
"""Of `trial.data`, where the images lie and how they get here: this changes no figure."""


class SearchFile(Frozen):
    """A whole configuration file."""

    trial: TrialConfig = TrialConfig()
    search: SearchConfig = SearchConfig()

    def summary(self) -> dict[str, Any]:
        """Plain values for people: as the file, but of an inlined suite its name and a digest."""
        values = self.model_dump(mode="json")
        suite = self.trial.data.suite
        if isinstance(suite, Suite):
            digest = hashlib.sha256(suite.model_dump_json().encode()).hexdigest()[:12]
            values["trial"]["data"]["suite"] = f"{suite.name} ({digest})"
        return values

    def search_space(self) -> SearchSpace:
        """The space as the sampler needs it.

        Raises:
            ConfigError: an unknown ready space, or a parameter that makes no sense.
        """
        return resolve_space(self.search.space, self.trial)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised."""
        return tuple(Objective(o.metric, o.mode) for o in self.search.objective)

    def constraints(self, zero_shot: Mapping[str, float] | None = None) -> tuple[Constraint, ...]:
        """What a choice must meet.

        Args:
            zero_shot: where it is known already, for a closer look at what can be met.

        Raises:
            ConfigError: a line that cannot be read, or that no trial can meet.
        """
        known = metric_names(self.trial.data)
        try:
            constraints = tuple(parse_constraint(line, known) for line in self.search.constraints)
            check_constraints(constraints, zero_shot)
        except ValueError as error:
            raise ConfigError(f"search.constraints: {error}") from None
        return constraints

    def trial_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """The base trial with a proposal laid over it."""
        of = f" for {params[METHOD_KEY]!r}" if METHOD_KEY in params else ""
        return with_overrides(self.trial, params, f"search.space{of}")

    def fingerprints(self) -> dict[str, str]:
        """Hashes of what must stay the same for as long as a search goes on."""
        parts = {
            "trial": self.trial.model_dump_json(exclude={"data": set(ELSEWHERE)}),
            "search.objective": repr(self.objectives),
            "search.constraints": repr(self.search.constraints),
            "search.space": self.search_space().canonical(),
        }
        return {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in parts.items()}

    def reference_config(self, name: str) -> TrialConfig:
        """The base trial with the reference's method."""
        values = self.trial.model_dump(mode="json") | {"method": {"name": name}}
        return validate(TrialConfig, values, "search.references")
