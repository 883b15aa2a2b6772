"""Optuna behind Ray Tune: what the sampler is told is what really happened.

Ray's own `OptunaSearch` tells Optuna that a trial which ASHA stopped is complete, with the score of
its low rung; here it is told as pruned, with its intermediate values, and a failure or a value that
is no number is told as failed. References pass through without the sampler hearing of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import SearchSpace
from tuning.config import ObjectiveConfig, SamplerConfig
from tuning.records import REFERENCE_KEY, STEP


class OptunaSearcher(Searcher):
    """Proposes the references first, then the first points, then what the sampler thinks.

    Args:
        space: what is searched.
        open_study: opens where proposals and outcomes are kept; called again by a copy of the
            searcher that Tune restores from its files.
        objective: metric and mode.
        total_steps: of a trial that nothing stops; one that ends before was pruned.
        trials: proposals, references not counted.
        references: names of the references.
    """

    def __init__(
        self,
        space: SearchSpace,
        open_study: Callable[[], optuna.Study],
        objective: ObjectiveConfig,
        *,
        total_steps: int,
        trials: int,
        references: Sequence[str] = (),
    ) -> None:
        super().__init__(metric=objective.metric, mode=objective.mode)
        self._distributions: dict[str, BaseDistribution] = space.distributions()
        self._open_study = open_study
        self._study = open_study()
        self._total_steps = total_steps
        self._remaining = trials
        self._references = list(references)
        self._running: dict[str, optuna.Trial] = {}
        for point in space.initial_points:
            self._study.enqueue_trial(point, skip_if_exists=True)

    def suggest(self, trial_id: str) -> Any:
        """The flat configuration of a new trial, or FINISHED when the budget is spent."""
        if self._references:
            return {REFERENCE_KEY: self._references.pop(0)}
        if self._remaining == 0:
            return Searcher.FINISHED
        self._remaining -= 1
        trial = self._study.ask(fixed_distributions=self._distributions)
        trial.set_user_attr("trial_id", trial_id)
        self._running[trial_id] = trial
        return dict(trial.params)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an intermediate value on."""
        trial, value = self._running.get(trial_id), self._value(result)
        if trial is not None and value is not None:
            trial.report(value, step=int(result[STEP]))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the outcome: complete at the last step, pruned before it, failed otherwise."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        value = None if result is None else self._value(result)
        if error or result is None or value is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif int(result[STEP]) < self._total_steps:
            # Tune reports a stopped trial's last result here alone.
            known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if int(result[STEP]) not in known:
                trial.report(value, step=int(result[STEP]))
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, value)

    def save(self, checkpoint_path: str) -> None:
        """Write what Tune needs to go on; proposals and outcomes are in the study's storage."""
        state = {
            "remaining": self._remaining,
            "references": self._references,
            "running": self._running_numbers(),
        }
        Path(checkpoint_path).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read what `save` wrote, and take the running trials up again."""
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self._remaining, self._references = state["remaining"], state["references"]
        self._take_up(state["running"])

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher whole; an open study has locks, and is opened again."""
        return {**self.__dict__, "_study": None, "_running": self._running_numbers()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._study = self._open_study()
        self._take_up(state["_running"])

    def _running_numbers(self) -> dict[str, int]:
        return {trial_id: trial.number for trial_id, trial in self._running.items()}

    def _take_up(self, numbers: dict[str, int]) -> None:
        frozen = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        self._running = {
            trial_id: optuna.Trial(self._study, frozen[number]._trial_id)
            for trial_id, number in numbers.items()
        }

    def _value(self, result: dict[str, Any]) -> float | None:
        value = result.get(self.metric)
        return float(value) if value is not None and math.isfinite(value) else None


def create_study(
    run_folder: Path, name: str, sampler: SamplerConfig, objective: ObjectiveConfig
) -> optuna.Study:
    """A study of this search alone, in a journal file of the run folder.

    A journal is appended to, never rewritten, so a crash cannot corrupt what stands in it, and
    `optuna-dashboard` can read it while the search runs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage: BaseStorage = JournalStorage(JournalFileBackend(str(run_folder / "optuna.journal")))
    return optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=_sampler(sampler),
        direction="maximize" if objective.mode == "max" else "minimize",
        load_if_exists=True,
    )


def _sampler(config: SamplerConfig) -> BaseSampler:
    if config.name == "random":
        return RandomSampler(seed=config.seed)
    return TPESampler(
        seed=config.seed,
        n_startup_trials=config.startup_trials,
        multivariate=True,
        constant_liar=True,  # trials run side by side: keep away from what is being tried
    )
