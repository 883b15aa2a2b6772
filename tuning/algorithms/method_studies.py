"""The parts of a search that go on side by side, each with a sampler of its own: its branches.

A search over one space has one branch. Where methods are compared, each is a branch: with one
sampler for all of them, a method that is worse on the whole would be drawn from at random, its
trials all among the bad ones, and how well a method can do would depend on which others there are.
So each has a study of its own, and is told of its own trials alone; `OptunaSearcher` deals trials
out to them in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna

from search_spaces import SearchSpace
from tuning.algorithms.samplers import grid
from tuning.algorithms.study import ended_in, open_storage, open_study, synchronise
from tuning.config.schema import SamplerConfig
from tuning.runs.records import METHOD_KEY, Outcome, ParamValue, SearchRecord, TrialRecord


@dataclass(frozen=True)
class Branch:
    """A space, and the study that holds the points tried in it."""

    space: SearchSpace
    study: optuna.Study
    method: str | None = None
    """The `method.name` of its proposals; None where the method is not searched."""
    grid: Sequence[Mapping[str, ParamValue]] | None = None
    """Points to propose in place of the sampler's."""

    def proposal(self, point: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """What a trial is given: a point of the space, with the method where that is searched."""
        return {**point} if self.method is None else {METHOD_KEY: self.method, **point}

    def owns(self, search: SearchRecord, record: TrialRecord) -> bool:
        """Whether the trial is of this branch's method, inside of the space or not."""
        method = self.method or search.method(replace(record, params={}))
        return record.kind == "trial" and search.method(record) == method

    def points(self, search: SearchRecord, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """The trials of this branch's method, as the study has them: without the method."""
        return [
            replace(record, params=point_of(record))
            for record in records
            if self.owns(search, record)
        ]


def point_of(record: TrialRecord) -> dict[str, ParamValue]:
    """The parameters of a trial but for its method."""
    return {key: value for key, value in record.params.items() if key != METHOD_KEY}


def open_branches(
    search: SearchRecord, sampler: SamplerConfig, space: SearchSpace, storage_url: str | None = None
) -> tuple[Branch, ...]:
    """The branches of a search; studies that are not there are made, see `open_study`.

    Their samplers have the same seed, so methods with equal spaces begin at equal points.
    """
    storage = open_storage(search.run_folder, storage_url)
    return tuple(
        Branch(
            part,
            open_study(search, sampler, part, storage, method),
            method,
            grid(part, sampler.grid_points, sampler.seed) if sampler.name == "grid" else None,
        )
        for method, part in space.parts().items()
    )


def ended_branches(
    branches: Iterable[Branch], search: SearchRecord, records: Sequence[TrialRecord]
) -> dict[str, Outcome]:
    """The outcomes of those trials that the studies know to have ended, by our names."""
    return {
        name: outcome
        for branch in branches
        for name, outcome in ended_in(branch.study, branch.points(search, records)).items()
    }


def synchronise_branches(
    branches: Iterable[Branch], search: SearchRecord, records: Sequence[TrialRecord]
) -> None:
    """Tell each study what the journal knows of its method's trials and it does not."""
    for branch in branches:
        points = branch.points(search, records)
        elsewhere = {r.trial_id for r in records} - {point.trial_id for point in points}
        synchronise(branch.study, branch.space.distributions(), search, points, elsewhere)
