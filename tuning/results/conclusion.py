"""What a search has found: the model to use, how it differs from others, and what to type next.

Terminal, page, MLflow, notebooks and exported models show this conclusion. It is made from all that
the run folder has: trials, references, and the fresh seeds of `confirm`. Here are its facts;
`tuning.results.words` has its sentences.

A search shows what it observed. Its differences have no interval: each model has one seed, and the
best trial is the luckiest of many. `confirm` measures the differences, with an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.log.records import STEP, ZERO_SHOT, Model, TrialRecord, trial_label
from tuning.results import words
from tuning.results.budget import more_of
from tuning.results.estimates import FT, REFERENCE, SPLIT, Confirmation, Estimate
from tuning.results.ranking import best_trial, first_trial, misses, ranked, stronger_reference

if TYPE_CHECKING:
    from tuning.run import Run


@dataclass(frozen=True)
class Compared:
    """How a trial differs from another model on the test splits, over the seeds that both have."""

    trial_id: str
    other: str
    """Its label."""
    gaps: Mapping[str, Estimate]
    """By `OOD` and `ID`, in points."""
    rivals: int = 1
    """Number of trials among which the same seeds have chosen it."""


@dataclass(frozen=True)
class Conclusion:
    """What a search has found."""

    run: Run
    best: TrialRecord | None
    """The trial, reference or zero-shot model that everything shows as the best; None before a
    trial has finished."""
    furthest: TrialRecord | None = None
    """Before a trial has finished, the best of those that got furthest; None without a value."""
    trial: TrialRecord | None = None
    """The best trial, with the figures that decided: its own, or its means over fresh seeds."""
    stronger: TrialRecord | None = None
    """The reference or zero-shot model that beats all trials."""
    missed: Mapping[str, float] = field(default_factory=dict)
    """Constraint -> amount by which the best trial misses it."""
    compared: Sequence[str] = ()
    """IDs of the trials that `confirm` should train: the best one, and the first one."""
    means: dict[str, float] | None = None
    """Of what `confirm` has trained, trials best first and then FT: mean of the first objective
    over the fresh seeds. None if the search's own trainings decided."""
    seeds: Sequence[int] = ()
    """These seeds."""
    tested: Sequence[Compared] = ()
    """What these seeds have measured on the test splits."""
    confirmation: Confirmation | None = None
    """All results of `confirm`; None before the first, or if they are damaged."""
    problem: str = ""
    """Why results of `confirm` are left out."""

    @property
    def model(self) -> Model | None:
        """The tested model of the search, which `export` writes."""
        return None if self.best is None or self.problem else self.run.model

    @cached_property
    def lines(self) -> list[str]:
        """Sentences: the result, what it is beside the first trial, and the limit."""
        return words.lines_of(self)

    @cached_property
    def beside_table(self) -> list[str]:
        """These without what was measured of a model, of which pages have a table."""
        return words.lines_of(self, has_table=True)

    @cached_property
    def of_model(self) -> list[str]:
        """Those on the model alone; all before there is one."""
        return words.lines_of(self, settings=False)

    @property
    def is_half_done(self) -> bool:
        """Whether `confirm` was interrupted before all of its seeds were trained."""
        return 0 < len(self.seeds) < (self.confirmation.wanted if self.confirmation else 0)

    def commands(self, run: str) -> list[str]:
        """Confirm what the search has found, or look for a better trial; then export it.

        Args:
            run: what a user types for the run folder.
        """
        best = self.best or self.furthest
        if best is None or best.outcome == "running":
            return []
        what = f"{trial_label(best)}, for open_clip, not tested"
        if self.model:
            what = "the model, for open_clip"
        export = f"lipsum-tune export {run} --output model   # {what}"
        if self.best is None or (self.seeds and not self.is_half_done):
            return [export]
        confirm = f"lipsum-tune confirm {run} --rule objective"
        confirm += " --rule first" * (len(self.compared) > 1)
        again = self.confirmation
        if self.is_half_done and again:
            confirm += f" --seeds {again.wanted}"
        known = {name for reading in again.readings for name in reading.trials} if again else set()
        confirm += " --again" * bool(known and not known.issuperset(self.compared))
        confirm += "   # fresh seeds, then the test splits, once"
        resume = f"lipsum-tune resume {run} {more_of(self.run)}"
        resume += f"   # more trials: none has passed {trial_label(best)}"
        more = [resume] if best.kind == "reference" and not self.seeds else []
        return [confirm, *more, export]


def conclusion(run: Run) -> Conclusion:
    """What a search has found so far.

    The best trial is named, unless a reference or the zero-shot model beats all trials. If
    `confirm` has trained the best trial again, all that it trained with the same fresh seeds are
    compared by their means on the validation splits: the test splits choose nothing, they measure
    differences.
    """
    goal = run.goal
    records = run.records
    searched = best_trial(goal, records)
    if searched is None or searched.outcome != "finished":
        return Conclusion(run, None, searched)
    confirmation: Confirmation | None = None
    problem = ""
    try:
        confirmation = run.settings
    except ConfigError as error:
        problem = str(error)
    again = confirmation and _with_common_seeds(run, confirmation, searched)
    decided = _over_fresh_seeds(run, again) if again else records
    trial = best_trial(goal, decided) or searched
    stronger = stronger_reference(goal, decided)
    leader = stronger or trial
    first = first_trial(records)
    others = [] if first is None or first.trial_id == searched.trial_id else [first]
    found = Conclusion(
        run,
        # With the figures of the search, where it has trained this model itself.
        best=next((r for r in records if _is_training_of(r, leader)), leader),
        trial=trial,
        stronger=stronger,
        missed=misses(goal, decided)[trial.trial_id],
        compared=[one.trial_id for one in (searched, *others)],
        confirmation=confirmation,
        problem=problem,
    )
    if again is None:
        return found
    metric = goal.objectives[0].metric
    ordered = [*ranked(goal, decided), *(r for r in decided if r.kind == "reference")]
    rivals = sum(record.kind == "trial" for record in decided)
    tested = _on_test_splits(again, trial.trial_id, FT, trial_label(REFERENCE), rivals)
    tested = tested or _on_test_splits(again, trial.trial_id, ZERO_SHOT, ZERO_SHOT, rivals)
    for one in others:
        tested += _on_test_splits(again, searched.trial_id, one.trial_id, "the first trial")
    return replace(
        found,
        means={r.trial_id: value for r in ordered if (value := r.last(metric)) is not None},
        seeds=again.seeds,
        tested=tested,
    )


def _is_training_of(record: TrialRecord, model: TrialRecord) -> bool:
    return record.trial_id == model.trial_id and record.outcome == "finished"


def _on_test_splits(
    again: Confirmation, trial_id: str, other_id: str, other: str, rivals: int = 1
) -> list[Compared]:
    """How two models differ; nothing if they share no seed."""
    gaps = {
        what: again.against(other_id, trial_id, str(MetricKey(SPLIT, domain, "acc")))
        for what, domain in (("OOD", MEAN_OOD), ("ID", ID))
    }
    known = {what: gap for what, gap in gaps.items() if gap is not None}
    return [Compared(trial_id, other, known, rivals)] if known else []


def _seeds_of(run: Run, confirmation: Confirmation, trial_id: str) -> set[int]:
    """The fresh seeds for which a model has all metrics that count."""
    needed = [objective.metric for objective in run.goal.objectives]
    needed += [constraint.metric for constraint in run.goal.constraints]
    return set.intersection(*({*confirmation.values(trial_id, metric)} for metric in needed))


def _with_common_seeds(
    run: Run, confirmation: Confirmation, best: TrialRecord
) -> Confirmation | None:
    """The confirmation with the seeds of the best trial that FT has, too; None if it has none."""
    seeds = _seeds_of(run, confirmation, best.trial_id)
    seeds = seeds & _seeds_of(run, confirmation, FT) or seeds  # those of FT may have failed
    return replace(confirmation, seeds=tuple(sorted(seeds))) if seeds else None


def _over_fresh_seeds(run: Run, again: Confirmation) -> list[TrialRecord]:
    """The trials and FT with their means over fresh seeds as only report.

    Without those that lack one of the seeds. A bound relative to the best trial is that of these
    means: single trainings are optimistic, and means held against the best of them would miss it.
    """
    known = {record.trial_id: record for record in run.records}
    known[FT] = replace(REFERENCE, outcome="finished")
    return [
        replace(
            known[one.trial_id],
            curve=({STEP: run.file.trial.steps, **again.means(one.trial_id)},),
        )
        for one in again.configurations
        if one.trial_id in known and {*again.seeds} <= _seeds_of(run, again, one.trial_id)
    ]
