"""The model of a search: what it is made of, how it is chosen, and what was measured of it.

Settings are measured by trainings with fresh seeds. A model is one set of weights, which was chosen
among candidates by validation data and then tested itself, once. Its events are in the journal of
the confirmation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.store import Store, open_store, url_of
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.log.history import Event
from tuning.log.paths import CONFIRM_FOLDER
from tuning.log.records import CHOSEN, MODEL, ZERO_SHOT, Chosen, Model, TrialRecord
from tuning.results.estimates import (
    FT,
    SPLIT,
    Confirmation,
    Estimate,
    coverage,
    estimate,
    minus,
    over_images,
    read_right,
    trained,
)
from tuning.results.goal import Goal
from tuning.results.ranking import finished_trials
from tuning.results.rules import ID_VAL, LEAVE_ONE_DOMAIN_OUT, saw_ood

if TYPE_CHECKING:
    from tuning.run import Run


def further(model: Model, records: Iterable[TrialRecord]) -> int:
    """Number of trials that have finished since a model was built."""
    return max(0, len(finished_trials(records)) - model.finished)


def made_of(model: Model) -> str:
    """What a model is, in words."""
    one = model.chosen
    names = [training["name"] for training in one.trainings]
    if not names:
        return "the zero-shot model"
    sources = Counter(trained(name)[0] for name in names)
    labels = {source: "plain fine-tuning" if source == FT else source for source in sources}
    if len(names) > 1:
        each = ", ".join(f"{number} of {labels[source]}" for source, number in sources.items())
        at = " at their ends" if one.of_ends else ""
        mean = f"the mean weights of {len(names)} trainings{at} ({each})"
        return mean if one.line == 1 else f"{one.line:g} of the line through {mean}"
    source, is_fresh = trained(names[0])
    name = labels[source]
    by = f"`confirm` trained it with seed {model.chosen.trainings[0]['seed']}"
    return f"{name}, as {by if is_fresh else 'the search trained it'}"


def model_goal(run: Run) -> Goal | None:
    """The goal of a search's model; None with several objectives, none of which decides.

    A bound relative to the best is that of the search's trials, for all candidates.
    """
    return run.goal.fixed(run.records) if len(run.goal.objectives) == 1 else None


@dataclass(frozen=True)
class DomainsGoal:
    """What a selection rule chooses a model by: the mean accuracy on some domains."""

    goal: Goal
    """That of the search, of which bounds of ID metrics count."""
    domains: tuple[str, ...]

    def merit(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Of metrics of weights: greater is better."""
        key = [MetricKey.parse(constraint.metric) for constraint in self.goal.constraints]
        pairs = zip(key, self.goal.constraints, strict=True)
        of_id = tuple(constraint for key, constraint in pairs if key and not key.uses_ood)
        acc = self._mean("acc", metrics)
        missed = replace(self.goal, constraints=of_id).missed(metrics)
        return -missed, acc if math.isfinite(acc) else -math.inf

    def nll_in(self, metrics: Mapping[str, float]) -> float:
        """The NLL on these domains, which decides between weights of equal merit."""
        return self._mean("nll", metrics)

    def _mean(self, measure: str, metrics: Mapping[str, float]) -> float:
        names = [str(MetricKey("val", domain, measure)) for domain in self.domains]
        # Rounded, so that equal means tie although their sums differ in the last binary digits.
        return round(fmean(metrics.get(name, math.nan) for name in names), 9)


def goals_by_rule(goal: Goal) -> dict[tuple[str, str], DomainsGoal]:
    """By rule and domain left out: what other rules choose a model by, where OOD data decide."""
    ood = goal.ood_domains
    found: dict[tuple[str, str], DomainsGoal] = {}
    if ood:
        found[ID_VAL, ""] = DomainsGoal(goal, (ID,))
    if len(ood) > 1:
        for domain in ood:
            others = tuple(other for other in ood if other != domain)
            found[LEAVE_ONE_DOMAIN_OUT, domain] = DomainsGoal(goal, others)
    return found


def chosen_event(
    model: Model, candidates: Sequence[Sequence[object]] = (), evaluations: int = 0
) -> Event:
    """What the journal has of a choice, before the model reads the test splits.

    Args:
        candidates: of each, its kind, whether it is made of ends, its point of the line, number of
            trainings, and merit.
        evaluations: of the validation splits, that the choice took.
    """
    return {
        "event": CHOSEN,
        "number": model.number,
        **_plain(model.chosen),
        "finished": model.finished,
        "notes": list(model.notes),
        "candidates": [[*candidate] for candidate in candidates],
        "evaluations": evaluations,
        "by_rule": [
            {"rule": one.rule, "left_out": one.left_out, **_plain(one.chosen)}
            for one in model.by_rule
        ],
    }


def _plain(one: Chosen) -> Event:
    """What the journal has of weights that were chosen."""
    return {
        "kind": one.kind,
        "of_ends": one.of_ends,
        "on_line": one.line,  # each event has its number as `line`
        "metrics": dict(one.metrics),
        "trainings": [dict(training) for training in one.trainings],
    }


def model_folder(run: Run, number: int, rule: str = "") -> Store:
    """Where a model of a run is, or that of another rule beside it."""
    name = f"{number}-{rule}" if rule else str(number)
    return open_store(url_of(run.checkpoint_root, CONFIRM_FOLDER, MODEL, name))


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
    run = confirmation.run
    before = confirmation.zero_shot
    domains = [ID, *([MEAN_OOD] if run.goal.ood_domains else []), *run.goal.ood_domains]
    columns = read_right(run.folder, model.training)
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


def findings_by_rule(confirmation: Confirmation, model: Model) -> list[Finding]:
    """What was measured of the models that other rules have chosen of the same candidates."""
    run = confirmation.run
    proposed = ", of trials that OOD data proposed" if saw_ood(run.goal) else ""
    accs: dict[str, dict[str, float]] = {}
    right: dict[str, dict[str, np.ndarray]] = {}
    for one in model.by_rule:
        keys = [MetricKey(SPLIT, d, "acc") for d in (ID, MEAN_OOD, *run.goal.ood_domains)]
        own = {str(key): one.test[str(key)] for key in keys if str(key) in one.test}
        accs[one.rule] = accs.get(one.rule, {}) | own
        columns = read_right(run.folder, model.training_of(one)).get("predicted", {})
        domains = [one.left_out] if one.left_out else [*columns]
        known = {domain: columns[domain] for domain in domains if domain in columns}
        right[one.rule] = right.get(one.rule, {}) | known
    labels = {
        ID_VAL: f"by ID accuracy alone{proposed or ', OOD data unseen'}",
        LEAVE_ONE_DOMAIN_OUT: f"with each OOD domain left out{proposed}",
    }
    found: list[Finding] = []
    for rule, of_rule in accs.items():
        if rule == LEAVE_ONE_DOMAIN_OUT:
            mean = str(MetricKey(SPLIT, MEAN_OOD, "acc"))
            of_rule = {mean: fmean(of_rule.values()), **of_rule}
        values: dict[str, Estimate] = {}
        for metric, acc in of_rule.items():
            shares = confirmation.shares(metric)
            is_known = shares.keys() <= right[rule].keys()
            images = confirmation.images(metric, [right[rule]]) if shares and is_known else []
            values[metric] = over_images(acc, images)
        found.append(Finding(labels[rule], values))
    return found


@dataclass(frozen=True)
class ModelInWords:
    """Sentences on the model of a search."""

    what: str
    """What it is made of."""
    measured: Sequence[str]
    """What was measured of it and of earlier ones; `model_table` has the same figures."""
    by_rule: Sequence[str]
    """What was measured of those that other rules have chosen."""
    notes: Sequence[str]
    """What was left out, and whether trials have finished since."""

    @property
    def lines(self) -> list[str]:
        """All but those of other rules."""
        return [self.what, *self.measured, *self.notes]


def model_in_words(run: Run) -> ModelInWords | None:
    """Sentences on the model of a search; None before one was tested."""
    if run.settings is None or run.model is None:
        return None
    *earlier, model = run.models
    own, *others = findings(run.settings, model)
    measured = [f"Its {own.title}, in percent: {_values(own)}."]
    measured += [f"Points more {one.title}: {_values(one, '+')}." for one in others]
    by_rule = [
        f"{one.title[0].upper()}{one.title[1:]}: {_values(one)}."
        for one in findings_by_rule(run.settings, model)
    ]
    for one in earlier:
        before = findings(run.settings, one)[0]
        measured.append(f"An earlier model, {made_of(one)}, has {_values(before)}.")
    notes = []
    if model.notes:
        notes.append(f"Left out of its candidates: {'; '.join(model.notes)}.")
    if number := further(model, run.records):
        trials = f"{number} further trial{'s' * (number > 1)}"
        notes.append(f"It was built before {trials}; `confirm --again` builds it anew.")
    return ModelInWords(f"The model is {made_of(model)}.", measured, by_rule, notes)


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
