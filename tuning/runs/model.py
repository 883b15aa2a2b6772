"""The model of a search: what it is made of, how it is chosen, and what was measured of it.

Settings are measured by trainings with fresh seeds. A model is one set of weights, which was chosen
among candidates by validation data and then tested itself, once. Its events are in the journal of
the confirmation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from trainers.data.store import Store, open_store, url_of
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.config.objectives import Constraint, Objective
from tuning.runs.confirmation import (
    CONFIRM_FOLDER,
    FT,
    SPLIT,
    TESTED,
    Confirmation,
    Estimate,
    coverage,
    estimate,
    minus,
    over_images,
    read_right,
    results_path,
    trained,
)
from tuning.runs.history import Event, JournalReader
from tuning.runs.ranking import finished_trials
from tuning.runs.records import ZERO_SHOT, SearchRecord, TrialRecord
from tuning.runs.run_folder import RunFolder

Kind: TypeAlias = Literal["single", "soup"]
"""One training of the search or of `confirm`, or the zero-shot model; a mean of trainings."""
CHOSEN: Final = "model_chosen"
MODEL: Final = "model"
"""Its folder below the checkpoint root of a confirmation, and the begin of its name there."""


@dataclass(frozen=True)
class Goal:
    """What makes a model better: its violations of the constraints, and then the objective."""

    objective: Objective
    bounds: tuple[Constraint, ...] = ()
    """Constraints whose bounds are numbers."""

    def merit(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Of metrics of the validation splits: greater is better."""
        value = metrics.get(self.objective.metric, math.nan)
        signed = self.objective.signed(value) if math.isfinite(value) else -math.inf
        return -self.missed(metrics), signed

    def missed(self, metrics: Mapping[str, float]) -> float:
        """By how much the bounds are violated, 0 if they are met."""
        amounts = (c.violation(metrics.get(c.metric), c.offset) for c in self.bounds)
        return sum(max(0.0, amount) for amount in amounts)

    @property
    def metrics(self) -> set[str]:
        """All metrics that it reads."""
        return {self.objective.metric, *(bound.metric for bound in self.bounds)}


@dataclass(frozen=True)
class Candidate:
    """Weights that may become the model."""

    kind: Kind
    name: str
    """A training, `zero-shot` or `soup`."""
    metrics: Mapping[str, float]
    """Of the whole validation splits."""
    trainings: tuple[Mapping[str, Any], ...] = ()
    """What it is made of: `name`, `method`, `seed`, `params` and `point` of each training."""


@dataclass(frozen=True)
class Model:
    """A candidate that was chosen."""

    number: int
    """From 1 on: `confirm --again` builds another one."""
    chosen: Candidate
    finished: int
    """Number of trials that had finished."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    test: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the test splits; empty before they are read."""

    @property
    def training(self) -> str:
        """Under which its predictions are stored."""
        return f"{MODEL}-{self.number}"

    def further(self, records: Iterable[TrialRecord]) -> int:
        """Number of trials that have finished since it was built."""
        return max(0, len(finished_trials(records)) - self.finished)

    def made_of(self) -> str:
        """What it is, in words."""
        names = [training["name"] for training in self.chosen.trainings]
        if not names:
            return "the zero-shot model"
        if len(names) > 1:
            return f"the mean weights of {', '.join(names)}"
        trial_id, is_fresh = trained(names[0])
        name = "plain fine-tuning" if trial_id == FT else trial_id
        by = f"`confirm` trained it with seed {self.chosen.trainings[0]['seed']}"
        return f"{name}, as {by if is_fresh else 'the search trained it'}"


def goal_of(search: SearchRecord, records: Sequence[TrialRecord]) -> Goal | None:
    """The goal of a search's model; None with several objectives, none of which decides.

    A bound relative to the best is that of the search's trials, for all candidates.
    """
    if len(search.objectives) > 1:
        return None
    bests = search.bests(records)
    bounds = [(c, c.bound(search.zero_shot, bests.get(c.text))) for c in search.constraints]
    fixed = [replace(c, anchor=None, offset=b) for c, b in bounds if b is not None]
    return Goal(search.objectives[0], tuple(fixed))


def choose(goal: Goal, candidates: Sequence[Candidate]) -> Candidate:
    """The best candidate, the earlier one of equals."""
    return max(candidates, key=lambda one: goal.merit(one.metrics))


def chosen_event(model: Model, goal: Goal, candidates: Sequence[Candidate]) -> Event:
    """What the journal has of a choice, before the model reads the test splits."""
    one = model.chosen
    return {
        "event": CHOSEN,
        "number": model.number,
        "kind": one.kind,
        "name": one.name,
        "metrics": dict(one.metrics),
        "trainings": [dict(training) for training in one.trainings],
        "finished": model.finished,
        "notes": list(model.notes),
        "candidates": [[c.kind, c.name, *goal.merit(c.metrics)] for c in candidates],
    }


def models_of(run_folder: Path) -> tuple[Model, ...]:
    """All models of a search in the order of their choice.

    The last one may still be tested. An earlier one was, unless its weights went before its test.
    """
    path, found = results_path(run_folder), dict[int, Model]()
    for event in JournalReader(path.parent).events() if path.is_file() else ():
        if event["event"] == CHOSEN:
            trainings = tuple(event["trainings"])
            chosen = Candidate(event["kind"], event["name"], event["metrics"], trainings)
            number, notes = event["number"], tuple(event["notes"])
            found[number] = Model(number, chosen, event["finished"], notes)
        elif event["event"] == TESTED and event["number"] in found:
            number = event["number"]
            found[number] = replace(found[number], test=event["metrics"])
    return tuple(found.values())


def models_tested(run_folder: Path) -> tuple[Model, ...]:
    """The models whose test accuracies are known; the last one is that of the search."""
    return tuple(model for model in models_of(run_folder) if model.test)


def model_folder(run: RunFolder, number: int) -> Store:
    """Where a model of a run is."""
    return open_store(url_of(run.checkpoint_root, CONFIRM_FOLDER, MODEL, str(number)))


@dataclass(frozen=True)
class Finding:
    """Test accuracies of a model, or their differences to another one, in points."""

    label: str
    values: Mapping[str, Estimate]
    """By metric: ID, mean OOD, each domain."""

    @property
    def title(self) -> str:
        """The label, and what the intervals hold for: of the other model, if they cover seeds."""
        return f"{self.label}{coverage(self.values.values())}"


def findings(confirmation: Confirmation, model: Model) -> list[Finding]:
    """What was measured of a model: alone, then beside zero-shot and plain fine-tuning on average.

    The weights of a model are given, so its intervals are over images alone. The mean of plain
    fine-tunings varies with their seeds as well, also if the model is made of some of them.
    """
    search = confirmation.search
    before = confirmation.zero_shot
    domains = [ID, *([MEAN_OOD] if search.ood_domains else []), *search.ood_domains]
    columns = read_right(search.run_folder, model.training)
    ours = [columns["predicted"]] if columns else []
    own: dict[str, Estimate] = {}
    to_zero_shot: dict[str, Estimate] = {}
    to_ft: dict[str, Estimate] = {}
    for metric in (str(MetricKey(SPLIT, domain, "acc")) for domain in domains):
        if (value := model.test.get(metric)) is None:
            continue
        own[metric] = over_images(value, confirmation.images(metric, ours))
        if metric in before:
            rows = [minus(right, columns["zero_shot"]) for right in ours]
            images = confirmation.images(metric, rows)
            to_zero_shot[metric] = over_images(value - before[metric], images)
        if of_ft := confirmation.values(FT, metric):
            its = confirmation.right(FT, metric)
            rows = [minus(right, its[seed]) for right in ours for seed in of_ft if seed in its]
            gaps = [value - other for other in of_ft.values()]
            to_ft[metric] = estimate(gaps, confirmation.images(metric, rows))
    others = [
        Finding(f"than {ZERO_SHOT}", to_zero_shot),
        Finding("than plain fine-tuning on average", to_ft),
    ]
    return [Finding("test accuracy", own), *(one for one in others if one.values)]


def model_in_words(
    confirmation: Confirmation, models: Sequence[Model], records: Iterable[TrialRecord]
) -> list[str]:
    """Sentences on the model of a search: what it is made of, and what was measured of it.

    Args:
        models: those that were tested, see `models_tested`; nothing without any.
    """
    if not models:
        return []
    model = models[-1]
    lines = [f"The model is {model.made_of()}.", *measured_in_words(confirmation, models)]
    if model.notes:
        lines.append(f"Left out of its candidates: {'; '.join(model.notes)}.")
    if further := model.further(records):
        trials = f"{further} further trial{'s' * (further > 1)}"
        lines.append(f"It was built before {trials}; `confirm --again` builds it anew.")
    return lines


def measured_in_words(confirmation: Confirmation, models: Sequence[Model]) -> list[str]:
    """Sentences with what was measured of the models of a search, the last one first."""
    *earlier, model = models
    own, *others = findings(confirmation, model)
    lines = [f"Its {own.title}, in percent: {_values(own)}."]
    if others:
        gaps = "; ".join(f"{one.title}: {_values(one, '+')}" for one in others)
        lines.append(f"Points more {gaps}.")
    for one in earlier:
        before = findings(confirmation, one)[0]
        lines.append(f"An earlier model, {one.made_of()}, has {_values(before)}.")
    return lines


def _values(found: Finding, sign: str = "") -> str:
    """`ID 66.5 ± 1.2, OOD 53.0 ± 1.0 (sketch 45.1 ± 1.5, clipart 60.9 ± 1.4)`."""
    words = {}
    for metric, value in found.values.items():
        key = MetricKey.parse(metric)
        domain = "" if key is None else {ID: "ID", MEAN_OOD: "OOD"}.get(key.domain, key.domain)
        margin = "" if math.isnan(value.low) else f" ± {value.high - value.mean:.1f}"
        words[domain] = f"{domain} {value.mean:{sign}z.1f}{margin}"
    whole = [words.pop(domain) for domain in ("ID", "OOD") if domain in words]
    each = f" ({', '.join(words.values())})" if words and not sign else ""
    return ", ".join(whole) + each
