"""The configuration of a search: a `SearchFile` of the sections `trial:` and `search:`.

`trial:` is the base TrialConfig. `search:` determines what is varied, how configurations are
proposed and stopped, what is optimised, and with which resources. `tuning.config.validation` reads
and checks configurations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from search_spaces.space import Spaces
from trainers.config import TrialConfig, with_overrides
from trainers.config_model import Frozen
from trainers.data.suite import Suite
from trainers.errors import ConfigError, validate
from trainers.evaluation.line import LineGoal
from trainers.evaluation.metrics import direction, metric_names
from trainers.methods.registry import load_plugins
from trainers.overrides import LR_KEY, METHOD_KEY, flat
from tuning.config.objectives import Constraint, Objective, check_constraints, parse_constraint
from tuning.config.prior import PriorConfig
from tuning.config.search_space import SpaceConfig, Strings, one_or_several, resolve_spaces


class SamplerConfig(Frozen):
    """Which of Optuna's samplers proposes configurations.

    In place of a single accuracy, the sampler optimises the NLL that belongs to it (`val/mean_nll`
    to `val/mean_acc`), which varies less from seed to seed, and early stopping compares trials by
    it. Selection, constraints and confirmation go by the objectives.
    """

    name: Literal["auto", "gp", "tpe", "random", "grid"] = "auto"
    """`auto` is `gp` for a single objective, numeric parameters and up to 100 trials (of each
    method), and `tpe` otherwise. Any other sampler of Optuna is passed as an object from Python."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    startup_trials: int | None = Field(default=None, ge=1, le=1_000_000)
    """Trials before `gp` or `tpe` uses its model: the first points, then random ones. For each
    method, if several are compared. null is 4 for `gp`, 6 otherwise."""
    grid_points: int = Field(default=4, ge=2, le=10_000)
    """For `grid`: values of each numeric parameter, evenly spaced on its scale."""
    reach: float = Field(default=0.25, gt=0, le=1)
    """For `gp` with one objective: how far three of four proposals may be from the best trial, as a
    share of each (log) range; choices and floats with a `step` are not limited. 1 is no limit."""


class SchedulerConfig(Frozen):
    """Early stopping by a pruner of Optuna, once 6 trials (of each method) have finished."""

    name: Literal["asha", "none"]
    """`asha` is asynchronous successive halving: of the trials that reach a rung, the best 1 /
    `reduction_factor` continue, and the next rung is at so many times the steps. `none` trains
    every trial in full. Any pruner of Optuna can be passed from Python."""
    grace_steps: int | None = Field(default=None, ge=1, le=10**9)
    """No trial is stopped before this step: the first rung. null is two
    thirds of `trial.steps`, rounded down to an evaluation: earlier, the best trials may look worse
    than those that hardly change the model."""
    reduction_factor: int = Field(default=3, ge=2, le=1000)
    """Of the trials that reach a rung, one in so many continues."""

    def first_step(self, total_steps: int, eval_every: int) -> int:
        """`grace_steps`, or its default for trials of so many steps."""
        share = total_steps * 2 // 3
        return self.grace_steps or max(share - share % eval_every, min(eval_every, total_steps))


class ObjectiveConfig(Frozen):
    """A metric to optimise, at the last step of a trial. Validation splits only."""

    metric: str = "val/mean_acc"
    mode: Literal["max", "min"] = "max"
    """By default the direction in which the metric is better. Must be given for others, such as
    distances and costs."""

    @model_validator(mode="before")
    @classmethod
    def _mode_is_that_of_the_metric(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("mode") is not None:
            return values
        known = direction(str(values.get("metric")))
        return {**values, "mode": known} if known else values


class BudgetConfig(Frozen):
    """Limits that end the search, whichever is reached first. They count across resumes.

    After `trials`, running trials may finish. The other limits stop running trials at once; a
    resume with a larger budget continues them.
    """

    trials: int = Field(default=20, ge=1, le=1_000_000)
    """Number of trials, over all methods together, references not included."""
    hours: float | None = Field(default=None, gt=0, le=1e6)
    """Wall-clock time in which the search runs."""
    gpu_hours: float | None = Field(default=None, gt=0, le=1e9)
    """Reserved GPUs times hours, including failed and repeated trials and references. The start
    of workers counts, and of a wait for GPUs the first two minutes."""
    failures: int | None = Field(default=10, ge=1, le=1_000_000)
    """Stop after so many failed trials in a row, counted from the start of the command: the cause
    lies elsewhere than in their parameters. Once it is removed, `lipsum-tune resume` goes on. null:
    never."""


class CheckpointsConfig(Frozen):
    """Where checkpoints of trials are kept, and how many of them."""

    storage: str | None = None
    """A folder or URL (`s3://bucket/x`) that all nodes reach; each search gets a folder in it. null
    is the run folder. The run folder itself must be on a disk: buckets cannot append to files."""
    keep_top: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["all"] = "all"
    """Keep the weights of so many best trials, and `confirm` of so many of its best trainings: it
    builds the model of them. Those that a selection rule may choose, the first trial and the
    references stay in any case."""
    gigabytes: float | None = Field(default=None, gt=0, le=1e9)
    """Limit of these weights (10^9 bytes), for the search and for `confirm` each: the worst go
    first. null is 50, or half of what is free on the disk if that is less; in a bucket no limit."""

    @property
    def most_kept(self) -> int | None:
        """`keep_top` as a number; None for all."""
        return None if self.keep_top == "all" else self.keep_top

    @field_validator("storage")
    @classmethod
    def _is_absolute(cls, storage: str | None) -> str | None:
        if storage is None or "://" in storage:
            return storage
        folder = Path(storage).expanduser()
        if not folder.is_absolute():  # each node has its own working directory
            raise ValueError("neither an absolute path nor a URL")
        return str(folder)


class WarmStartConfig(Frozen):
    """Earlier searches whose best points are tried first."""

    runs: Strings = ()
    """Run folders of the earlier searches, or names of folders in `runs/`."""
    top: int = Field(default=4, ge=1, le=1_000_000)
    """Number of points to try first from each run."""


class ResourcesConfig(Frozen):
    """Resources of one trial. How many trials run at once follows from the cluster's resources."""

    workers: int = Field(default=1, ge=1, le=10_000)
    """Data-parallel processes of a trial."""
    cpus_per_worker: int = Field(default=1, ge=1, le=10_000)
    """CPU cores of each worker, including those that decode images."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    """A worker trains on one GPU. A fraction lets several trials with one worker share it."""
    max_concurrent: int | None = Field(default=None, ge=1, le=1_000_000)
    """Trials that run at once; null is as many as fit. On a cluster that adds nodes by itself, as
    many as it will have room for: those that do not fit yet wait."""
    max_failures: int = Field(default=3, ge=0, le=1_000_000)
    """Errors after which a trial continues from its last checkpoint, counted from its last new
    step: of lost workers and nodes, hangs, and the training itself. If the training raises the same
    twice, it has failed; if its loss is not finite, at once."""
    hang_after_s: float = Field(default=1800, gt=0, le=1e9)
    """A training step or a batch of an evaluation that takes longer hangs. Its worker ends, with
    the stack in Ray's log of its node, and the trial continues with new ones."""

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _is_one_gpu_at_most(cls, given: Any) -> Any:
        if isinstance(given, int | float) and given > 1:
            raise ValueError(f"a worker has one GPU; write workers: {given:g}")
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> ResourcesConfig:
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} with workers = {self.workers}: NCCL "
                "refuses two workers of one trial on one GPU; give each a whole one, or the trial "
                "one worker"
            )
        return self

    @property
    def gpus_per_trial(self) -> float:
        """GPUs that a trial reserves."""
        return self.workers * self.gpus_per_worker

    def per_trial(self) -> dict[str, Any]:
        """The arguments of `trainers.ray_trainer.torch_trainer`."""
        return self.model_dump(exclude={"max_concurrent", "max_failures", "hang_after_s"})


class TrackingConfig(Frozen):
    """Where MLflow records the search."""

    uri: str | None = None
    """Any tracking URI; null is a SQLite database in the folder of runs. Write `${NAME}` in place
    of a password; it is taken from the environment."""
    experiment: str = "lipsum-tune"
    """Name of the MLflow experiment."""


class SearchConfig(Frozen):
    """The `search:` section."""

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run folder, the MLflow run and the Optuna study."""
    space: SpaceConfig = SpaceConfig()
    prior: PriorConfig = PriorConfig()
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig(name="none")
    objective: Annotated[
        tuple[ObjectiveConfig, ...],
        BeforeValidator(
            one_or_several, json_schema_input_type=ObjectiveConfig | tuple[ObjectiveConfig, ...]
        ),
        Field(min_length=1),
    ] = (ObjectiveConfig(),)
    """One metric, or a list of several."""
    constraints: Strings = ()
    """One line or several, such as `id_val/acc >= zero_shot.id_val/acc`; see
    `tuning.config.objectives`."""
    warm_start: WarmStartConfig = WarmStartConfig()
    budget: BudgetConfig = BudgetConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    references: tuple[Literal["ft"], ...] = ("ft",)
    """Baselines that run beside the search, with the trial's own settings, never stopped early."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("name")
    @classmethod
    def _is_no_file_of_mlflow(cls, name: str) -> str:
        # SQLite's files are mlflow.db-wal and others; some file systems ignore case.
        if name.lower().startswith(("mlflow.db", "mlflow-artifacts")) or name == "journal.lock":
            raise ValueError("MLflow or a run has a file of this name beside the run folders")
        return name

    study_storage: str | None = None
    """Database of the Optuna study for dashboards, `postgresql+psycopg://user:${PASSWORD}@host/name`;
    it must not be MLflow's. null is a journal file in the run folder."""
    storage: str = "runs"
    """Folder of the run folders. With several nodes, all must reach it, unless the checkpoints have
    a storage of their own."""


ELSEWHERE = ("root", "workers", "decoded_gb", "cache_dir")
"""Keys of `trial.data` that change no metric: where images are and how they are read."""


load_plugins()  # pydantic would wrap its ConfigError in the default of `SearchFile.trial`


class SearchFile(Frozen):
    """A whole configuration file."""

    plugins: tuple[str, ...] = Field(default=(), exclude=True)
    """Python modules that register fine-tuning methods. They become part of `trial.plugins`, and
    are imported before the rest of the configuration is validated, and by every worker."""
    trial: TrialConfig = TrialConfig()
    """The fine-tuning whose settings are searched."""
    search: SearchConfig = SearchConfig()
    """How it is searched."""

    @model_validator(mode="before")
    @classmethod
    def _plugins_of_the_trial(cls, values: Any) -> Any:
        """Move the `plugins` of a file to those of `trial`."""
        plugins = values.get("plugins") if isinstance(values, Mapping) else None
        trial = (values.get("trial") or {}) if plugins else None
        if not isinstance(plugins, list | tuple) or not isinstance(trial, Mapping):
            return values
        others = {key: value for key, value in values.items() if key != "plugins"}
        return {**others, "trial": {**trial, "plugins": [*plugins, *trial.get("plugins", ())]}}

    def model_copy(self, **options: Any) -> Any:
        """A copy whose search space is resolved again; pydantic copies cached values too."""
        copied = super().model_copy(**options)
        copied.__dict__.pop("spaces", None)
        return copied

    def summary(self) -> dict[str, Any]:
        """The configuration as plain values, with an inlined suite as its name and a digest."""
        values = self.model_dump(mode="json")
        suite = self.trial.data.suite
        if isinstance(suite, Suite):
            digest = hashlib.sha256(suite.model_dump_json().encode()).hexdigest()[:12]
            values["trial"]["data"]["suite"] = f"{suite.name} ({digest})"
        return values

    @cached_property
    def spaces(self) -> Spaces:
        """What is searched, resolved at the first use."""
        search = self.search
        return resolve_spaces(search.space, search.prior, self.trial, search.sampler.seed)

    @property
    def most_trials(self) -> int:
        """Number of trials of the budget, or of a smaller grid after the points of a warm start."""
        search, parts = self.search, self.spaces.values()
        if search.sampler.name != "grid":
            return search.budget.trials
        earlier = len(parts) * len(search.warm_start.runs) * search.warm_start.top
        grids = (part.grid(search.sampler.grid_points).values() for part in parts)
        return min(search.budget.trials, earlier + sum(prod(map(len, grid)) for grid in grids))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The metrics to optimise."""
        return tuple(Objective(o.metric, o.mode) for o in self.search.objective)

    def constraints(self, zero_shot: Mapping[str, float] | None = None) -> tuple[Constraint, ...]:
        """The constraints on a chosen trial.

        Args:
            zero_shot: the zero-shot model's metrics, if known, for a stricter check.
        """
        known = metric_names(self.trial.data)
        try:
            constraints = tuple(parse_constraint(line, known) for line in self.search.constraints)
            check_constraints(constraints, zero_shot)
        except ValueError as error:
            raise ConfigError(str(error), key="search.constraints") from None
        return constraints

    @property
    def reference_params(self) -> dict[str, float]:
        """The learning rate of plain fine-tuning, which has it from the configuration."""
        return {LR_KEY: self.trial.optim.lr}

    def trial_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """The base trial with a point of the search space."""
        method = f" for {params[METHOD_KEY]!r}" if METHOD_KEY in params else ""
        return self._with_line_goal(with_overrides(self.trial, params, f"search.space{method}"))

    def _with_line_goal(self, trial: TrialConfig) -> TrialConfig:
        """The trial, whose point of the line is chosen by the objectives and constraints."""
        if trial.eval.line_goal:
            key, problem = "trial.eval.line_goal", "a search has objective and constraints instead"
            raise ConfigError(problem, key=key)
        if not trial.eval.line_points:
            return trial
        known = metric_names(trial.data)
        objectives = tuple((o.metric, o.mode) for o in self.objectives if o.metric in known)
        if not objectives:
            raise ConfigError(
                "is no metric of the validation splits, by which `trial.eval.line` could choose",
                key="search.objective.metric",
                value=self.objectives[0].metric,
                hint="a number as `trial.eval.line` is a fixed point, `off` the end",
            )
        goal = LineGoal(
            objectives=objectives,
            bounds=tuple((c.metric, c.mode, c.anchor, c.offset) for c in self.constraints()),
        )
        changed = trial.eval.model_copy(update={"line_goal": goal})
        return trial.model_copy(update={"eval": changed})

    def fingerprints(self) -> dict[str, str]:
        """Hashes of what must not change when a search is resumed: of `trial`, by dotted key.

        A key that a later version adds or removes does not change those of the others.
        """
        trial = self.trial.model_dump(mode="json", exclude={"data": {*ELSEWHERE, "suite"}})
        parts = {f"trial.{key}": json.dumps(value) for key, value in flat(trial).items()}
        suite = self.trial.data.suite
        own = suite.model_dump_json(exclude_defaults=True) if isinstance(suite, Suite) else suite
        parts["trial.data.suite"] = json.dumps(own)
        found = {m: space.model_dump(mode="json")["parameters"] for m, space in self.spaces.items()}
        parts |= {
            "search.objective": repr(self.objectives),
            "search.constraints": repr(self.search.constraints),
            "search.space": json.dumps(found.get(None, {"branches": found}), sort_keys=True),
        }
        return {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in parts.items()}

    def reference_config(self, name: str) -> TrialConfig:
        """The base trial with the reference's method."""
        values = self.trial.model_dump(mode="json") | {"method": {"name": name}}
        return self._with_line_goal(validate(TrialConfig, values, "search.references"))
