"""Optuna behind Ray Tune: what the sampler is told is what really happened.

Ray's own `OptunaSearch` tells Optuna that a trial which ASHA stopped is complete, with the score of
its low rung; here it is told as pruned, with its intermediate values, and a failure or a value that
is no number is told as failed. References pass through without the sampler hearing of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import SearchSpace
from tuning.records import (
    REFERENCE_KEY,
    STEP,
    TRIAL_KEY,
    SearchRecord,
    TrialRecord,
    trial_name,
    trial_number,
)
from tuning.study import TRIAL_ID, report, tell


class OptunaSearcher(Searcher):
    """Proposes what was left unfinished first, then the references, then what the sampler thinks.

    Args:
        study: with its sampler; what earlier sessions found is told to it already.
        space: what is searched.
        search: objectives, constraints and length of a trial.
        may_propose: whether the budget allows for the trial of that number.
        references: names of the references that have not run.
        earlier: trials of earlier sessions. The unfinished ones are proposed again, under the same
            names, by which their checkpoints are found.
        grid: points to propose in place of the sampler's; the search ends with them.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        search: SearchRecord,
        *,
        may_propose: Callable[[int], bool] = lambda number: True,
        references: Sequence[str] = (),
        earlier: Iterable[TrialRecord] = (),
        grid: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        first = search.objectives[0]
        super().__init__(metric=first.metric, mode=first.mode)
        self._study, self._search, self._may_propose = study, search, may_propose
        self._distributions = space.distributions()
        earlier = list(earlier)
        self._bests = search.bests(earlier)
        trials = study.get_trials(deepcopy=False)
        numbers = [record.number for record in earlier]
        numbers += [
            trial_number(t.user_attrs[TRIAL_ID]) for t in trials if TRIAL_ID in t.user_attrs
        ]
        self._next_number = 1 + max(numbers, default=-1)
        self._asked: dict[str, optuna.Trial] = {}  # by our name, before they start
        self._running: dict[str, tuple[TrialRecord, optuna.Trial]] = {}  # by Tune's name
        self._waiting = deque(self._unfinished(trials, earlier))
        self._waiting.extend(
            {TRIAL_KEY: name, REFERENCE_KEY: name}
            for name in references
            if all(record.trial_id != name for record in earlier)
        )
        tried = [record.params for record in earlier] + [trial.params for trial in trials]
        self._grid = None if grid is None else deque(p for p in grid if p not in tried)
        for point in space.initial_points if grid is None else ():
            study.enqueue_trial(point, skip_if_exists=True)

    def suggest(self, trial_id: str) -> Any:
        """The flat configuration of a trial, or FINISHED when the budget is spent."""
        if self._waiting:
            proposal = self._waiting.popleft()
        elif self._may_propose(self._next_number) and self._grid != deque():
            proposal = self._ask()
        else:
            return Searcher.FINISHED
        trial = self._asked.pop(proposal[TRIAL_KEY], None)
        if trial is not None:
            self._running[trial_id] = (self._record(proposal), trial)
        return proposal

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an intermediate value on."""
        if trial_id in self._running and STEP in result:
            record, trial = self._running[trial_id]
            value = self._reported(record, result).last(str(self.metric))
            if value is not None and len(self._search.objectives) == 1:
                report(trial, self._study, value, int(result[STEP]))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the outcome: complete at the last step, pruned before it, failed otherwise."""
        if trial_id not in self._running:
            return
        record, trial = self._running.pop(trial_id)
        if error or result is None or STEP not in result:
            record = replace(record, outcome="failed")
        else:
            record = self._reported(record, result)
            done = record.step >= self._search.total_steps
            record = replace(record, outcome="finished" if done else "pruned")
        self._bests = self._search.with_bests(self._bests, record)
        tell(trial, self._study, self._search, record, self._bests)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resume is made from the journal of the run folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resume is made from the journal of the run folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher beside its own state, from which nothing is restored here."""
        return {}

    def _ask(self) -> dict[str, Any]:
        if self._grid:
            self._study.enqueue_trial(self._grid.popleft())
        trial = self._study.ask(fixed_distributions=self._distributions)
        return self._name(trial)

    def _name(self, trial: optuna.Trial) -> dict[str, Any]:
        name = trial.user_attrs.get(TRIAL_ID)
        if name is None:
            name = trial_name(self._next_number)
            self._next_number += 1
            trial.set_user_attr(TRIAL_ID, name)
        self._asked[name] = trial
        return {TRIAL_KEY: name, **trial.params}

    def _unfinished(
        self, trials: Sequence[optuna.trial.FrozenTrial], earlier: Sequence[TrialRecord]
    ) -> list[dict[str, Any]]:
        """What the journal has as stopped, then what was asked for and never started."""
        running = {
            t.user_attrs.get(TRIAL_ID, t.number): optuna.Trial(self._study, t._trial_id)
            for t in trials
            if t.state == TrialState.RUNNING
        }
        proposals: list[dict[str, Any]] = []
        for record in earlier:
            if record.outcome != "stopped":
                continue
            if record.kind == "reference":
                proposals.append({TRIAL_KEY: record.trial_id, REFERENCE_KEY: record.trial_id})
                continue
            if trial := running.pop(record.trial_id, None):
                self._asked[record.trial_id] = trial
            proposals.append({TRIAL_KEY: record.trial_id, **record.params})
        for trial in running.values():
            # A kill between two of its parameters leaves it without the others.
            for key, distribution in self._distributions.items():
                trial._suggest(key, distribution)
            proposals.append(self._name(trial))
        return proposals

    def _record(self, proposal: dict[str, Any]) -> TrialRecord:
        params = {key: value for key, value in proposal.items() if key != TRIAL_KEY}
        name = proposal[TRIAL_KEY]
        return TrialRecord(name, trial_number(name), "trial", params)

    def _reported(self, record: TrialRecord, result: dict[str, Any]) -> TrialRecord:
        """The record with Tune's flat result as its last report."""
        names = {o.metric for o in self._search.objectives}
        names |= {c.metric for c in self._search.constraints}
        values = {name: float(result[name]) for name in names if name in result}
        return replace(record, curve=({STEP: int(result[STEP]), **values},))
