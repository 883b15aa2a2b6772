"""Optuna behind Ray Tune: what the sampler is told is what really happened.

Ray's own `OptunaSearch` tells Optuna that a trial which ASHA stopped is complete, with the score of
its low rung; here it is told as pruned, with its intermediate values, and a failure or a value that
is no number is told as failed. References pass through without the sampler hearing of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tuning.algorithms.method_studies import Branch, point_of
from tuning.algorithms.study import TRIAL_ID, report, tell
from tuning.runs.records import (
    REFERENCE_KEY,
    STEP,
    TRIAL_KEY,
    ParamValue,
    SearchRecord,
    TrialRecord,
    trial_name,
    trial_number,
)


class OptunaSearcher(Searcher):
    """Proposes what was left unfinished first, then the references, then what the samplers think.

    Where there are several branches, the next trial goes to the one that has been given fewest, of
    equals to the first: what they have been given never differs by more than one, whatever came of
    it, and one that an extended search adds catches up first. A branch whose grid is used up gets
    no more.

    Args:
        branches: with their studies and samplers; what earlier sessions found is told to them
            already.
        search: objectives, constraints and length of a trial.
        may_propose: whether the budget allows for the trial of that number.
        references: names of the references that have not run.
        earlier: trials of earlier sessions. The unfinished ones are proposed again, under the same
            names, by which their checkpoints are found.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        search: SearchRecord,
        *,
        may_propose: Callable[[int], bool] = lambda number: True,
        references: Sequence[str] = (),
        earlier: Iterable[TrialRecord] = (),
    ) -> None:
        first = search.objectives[0]
        super().__init__(metric=first.metric, mode=first.mode)
        self._search, self._may_propose = search, may_propose
        earlier = list(earlier)
        self._hands = [_Hand.of(branch, search, earlier) for branch in branches]
        numbers = [record.number for record in earlier]
        numbers += [trial_number(name) for hand in self._hands for name in hand.given]
        self._next_number = 1 + max(numbers, default=-1)
        self._asked: dict[str, tuple[_Hand, optuna.Trial]] = {}  # by our name, before they start
        self._running: dict[str, tuple[TrialRecord, _Hand, optuna.Trial]] = {}  # by Tune's name
        self._waiting = deque(self._unfinished(earlier))
        self._waiting.extend(
            {TRIAL_KEY: name, REFERENCE_KEY: name}
            for name in references
            if all(record.trial_id != name for record in earlier)
        )

    def suggest(self, trial_id: str) -> Any:
        """The flat configuration of a trial, or FINISHED when the budget is spent."""
        open_hands = [hand for hand in self._hands if hand.grid != deque()]
        if self._waiting:
            proposal = self._waiting.popleft()
        elif open_hands and self._may_propose(self._next_number):
            hand = min(open_hands, key=lambda hand: len(hand.given))
            proposal = self._name(hand, hand.ask())
        else:
            return Searcher.FINISHED
        if asked := self._asked.pop(proposal[TRIAL_KEY], None):
            self._running[trial_id] = (self._record(proposal), *asked)
        return proposal

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an intermediate value on."""
        if trial_id in self._running and STEP in result:
            record, hand, trial = self._running[trial_id]
            value = self._reported(record, result).last(str(self.metric))
            if value is not None and len(self._search.objectives) == 1:
                report(trial, hand.branch.study, value, int(result[STEP]))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the outcome: complete at the last step, pruned before it, failed otherwise."""
        if trial_id not in self._running:
            return
        record, hand, trial = self._running.pop(trial_id)
        if error or result is None or STEP not in result:
            record = replace(record, outcome="failed")
        else:
            record = self._reported(record, result)
            done = record.step >= self._search.total_steps
            record = replace(record, outcome="finished" if done else "pruned")
        hand.bests = self._search.with_bests(hand.bests, record)
        tell(trial, hand.branch.study, self._search, record, hand.bests)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resume is made from the journal of the run folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resume is made from the journal of the run folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher beside its own state, from which nothing is restored here."""
        return {}

    def _name(self, hand: _Hand, trial: optuna.Trial) -> dict[str, Any]:
        """The proposal of a trial that was asked for, under the name that it has or now gets."""
        name = trial.user_attrs.get(TRIAL_ID)
        if name is None or name in self._asked:  # another branch may have given it away, too
            name = trial_name(self._next_number)
            self._next_number += 1
            trial.set_user_attr(TRIAL_ID, name)
        self._asked[name] = (hand, trial)
        hand.given.add(name)
        return {TRIAL_KEY: name, **hand.branch.proposal(trial.params)}

    def _unfinished(self, earlier: Sequence[TrialRecord]) -> list[dict[str, Any]]:
        """What the journal has as stopped, then what was asked for and never started."""
        proposals: list[dict[str, Any]] = []
        for record in earlier:
            if record.outcome != "stopped":
                continue
            if record.kind == "reference":
                proposals.append({TRIAL_KEY: record.trial_id, REFERENCE_KEY: record.trial_id})
                continue
            for hand in self._hands:
                if trial := hand.left_running.pop(record.trial_id, None):
                    self._asked[record.trial_id] = (hand, trial)
            proposals.append({TRIAL_KEY: record.trial_id, **record.params})
        left = [(hand, trial) for hand in self._hands for trial in hand.left_running.values()]
        for hand, trial in sorted(left, key=lambda item: _number(item[1])):
            proposals.append(self._name(hand, hand.completed(trial)))
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


@dataclass
class _Hand:
    """What a branch has been dealt, and what it knows."""

    branch: Branch
    bests: dict[str, float]
    """Of its own trials, for its constraints: how it is tuned rests on no other branch."""
    given: set[str]
    """The names of its trials, those asked for and never started among them."""
    grid: deque[Mapping[str, ParamValue]] | None = None
    """Points that are left."""
    left_running: dict[str | int, optuna.Trial] = field(default_factory=dict)
    """What the study has as running at the start, by our name; by Optuna's where it has none."""

    @classmethod
    def of(cls, branch: Branch, search: SearchRecord, earlier: Sequence[TrialRecord]) -> _Hand:
        """The hand of a branch at the start of a session; its first points are lined up."""
        own = [record for record in earlier if branch.owns(search, record)]
        started = {record.trial_id for record in earlier}
        trials = branch.study.get_trials(deepcopy=False)
        asked = {t.user_attrs[TRIAL_ID] for t in trials if TRIAL_ID in t.user_attrs}
        hand = cls(
            branch, search.bests(own), {record.trial_id for record in own} | (asked - started)
        )
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                key = trial.user_attrs.get(TRIAL_ID, trial.number)
                hand.left_running[key] = optuna.Trial(branch.study, trial._trial_id)
        if branch.grid is None:
            for point in branch.space.initial_points:
                branch.study.enqueue_trial(point, skip_if_exists=True)
        else:
            tried = [point_of(record) for record in own] + [trial.params for trial in trials]
            hand.grid = deque(point for point in branch.grid if point not in tried)
        return hand

    def ask(self) -> optuna.Trial:
        """The next point of the grid, or of the sampler."""
        if self.grid:
            self.branch.study.enqueue_trial(dict(self.grid.popleft()))
        return self.branch.study.ask(fixed_distributions=self.branch.space.distributions())

    def completed(self, trial: optuna.Trial) -> optuna.Trial:
        """The trial with all its parameters: a kill between two leaves it without the others."""
        for key, distribution in self.branch.space.distributions().items():
            trial._suggest(key, distribution)
        return trial


def _number(trial: optuna.Trial) -> float:
    """The number in its name, by which it was asked for; those without a name come last."""
    name = trial.user_attrs.get(TRIAL_ID)
    return float("inf") if name is None else trial_number(name)
