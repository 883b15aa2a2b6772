"""What a search has found: the model to use, how it differs from others, and what to type next.

Terminal, page, MLflow, notebooks and exported models show this conclusion. It is made from all that
the run folder has: trials, references, and the fresh seeds of `confirm`.

A search shows what it observed. Its differences have no interval: each model has one seed, and the
best trial is the luckiest of many. `confirm` measures the differences, with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, ID_ACC, MEAN_OOD, OOD_MEAN_ACC, MetricKey, in_percent
from tuning.runs.confirmation import (
    FT,
    REFERENCE,
    SPLIT,
    Confirmation,
    Estimate,
    Reading,
    coverage,
    read_confirmation,
)
from tuning.runs.model import Model, model_in_words, models_tested
from tuning.runs.ranking import (
    best_trial,
    finished_trials,
    first_trial,
    misses,
    ranked,
    references,
    stronger_reference,
)
from tuning.runs.records import STEP, ZERO_SHOT, SearchRecord, TrialRecord, trial_label


@dataclass(frozen=True)
class Conclusion:
    """What a search has found."""

    best: TrialRecord | None
    """The trial, reference or zero-shot model that everything shows as the best; None before a
    trial has finished."""
    lines: Sequence[str]
    """Sentences: the result, what it is beside the first trial, and the limit."""
    furthest: TrialRecord | None = None
    """Before a trial has finished, the best of those that got furthest; None without a value."""
    more: str = "--trials +8"
    """How a resume goes on."""
    compared: Sequence[str] = ()
    """IDs of the trials that `confirm` should train: the best one, and the first one."""
    means: dict[str, float] | None = None
    """Of what `confirm` has trained, trials best first and then FT: mean of the first objective
    over the fresh seeds. None if the search's own trainings decided."""
    seeds: Sequence[int] = ()
    """These seeds."""
    confirmation: Confirmation | None = None
    """All results of `confirm`; None before the first, or if they are damaged."""
    model: Model | None = None
    """The tested model of the search, which `export` writes."""

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
        resume = f"lipsum-tune resume {run} {self.more}"
        resume += f"   # more trials: none has passed {trial_label(best)}"
        more = [resume] if best.kind == "reference" and not self.seeds else []
        return [confirm, *more, export]


def conclusion(search: SearchRecord, records: Sequence[TrialRecord]) -> Conclusion:
    """What a search has found so far.

    The best trial is named, unless a reference or the zero-shot model beats all trials. If
    `confirm` has trained the best trial again, all that it trained with the same fresh seeds are
    compared by their means on the validation splits: the test splits choose nothing, they measure
    differences.
    """
    notes = [search.damage] if search.damage else []
    best = best_trial(search, records)
    if best is None or best.outcome != "finished":
        return Conclusion(None, ["No trial has finished yet.", *notes], best)
    confirmation: Confirmation | None = None
    models: Sequence[Model] = ()
    try:
        confirmation = read_confirmation(search)
        models = models_tested(search.run_folder)
    except ConfigError as error:
        notes.append(f"Results of confirm are left out: {error}")
    if confirmation is not None and confirmation.readings:
        notes.append(readings_in_words(confirmation.readings))
    again = confirmation and _with_common_seeds(search, confirmation, best)
    if again is None:
        found = _of_search(search, records, best)
    else:
        found = _of_fresh_seeds(search, records, best, again)
    of_model = model_in_words(confirmation, models, records) if confirmation else []
    if of_model and again is not None:
        of_model.append("Settings, which are what a paper reports:")
    first = first_trial(records)
    others = [] if first is None or first.trial_id == best.trial_id else [first.trial_id]
    return replace(
        found,
        lines=[*of_model, *found.lines, *notes],
        more=_more(search, records),
        compared=[best.trial_id, *others],
        confirmation=confirmation,
        model=models[-1] if models else None,
    )


def _more(search: SearchRecord, records: Sequence[TrialRecord]) -> str:
    """As much again of the hours that have ended the search, and eight trials if all have ended.

    `tuning.runs.resume.nothing_left` refuses a resume with less.
    """
    options = []
    for name in ("hours", "gpu_hours"):
        limit = search.configured("search", "budget", name)
        if isinstance(limit, int | float) and search.ended_by.startswith(f"search.budget.{name} "):
            options.append(f"--{name.replace('_', '-')} +{limit:g}")
    begun = sum(record.kind != "reference" for record in records)
    is_unfinished = any(record.outcome == "stopped" for record in records)
    if not options or (begun >= search.budget_trials and not is_unfinished):
        options.append("--trials +8")
    return " ".join(options)


def _of_search(
    search: SearchRecord, records: Sequence[TrialRecord], best: TrialRecord
) -> Conclusion:
    """By the search's own trainings, with one seed each."""
    stronger = stronger_reference(search, records)
    missed = misses(search, records)[best.trial_id]
    reference, *_ = references(search, records)
    number = len(finished_trials(records))
    seeds = "one seed" if (stronger or reference).trial_id == ZERO_SHOT else "one seed each"
    if stronger is not None:
        lines = [f"{_none_is_above(search, best, stronger, bool(missed))}: {seeds}."]
    elif missed:
        lines = [_closest(best, missed)]
    else:
        if number > 1:
            seeds = f"the best of {number}, one seed each: partly luck"
        gaps = _gaps(best, reference)
        what = f"{gaps} points against {trial_label(reference)}" if gaps else _value(search, best)
        lines = [f"{best.trial_id} has {what} ({seeds}). Confirm it."]
    first = first_trial(records)
    if stronger is None and first is not None and number > 1:
        if first.trial_id == best.trial_id:
            lines.append("It is the first trial: no other one ranks higher.")
        elif gaps := _gaps(best, first):
            lines.append(f"It has {gaps} points against the first trial.")
    lines.append(f"{chosen_on(search)}.")
    return Conclusion(stronger or best, lines)


def _of_fresh_seeds(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    best: TrialRecord,
    again: Confirmation,
) -> Conclusion:
    """By the means over fresh seeds of what `confirm` has trained."""
    found = _over_fresh_seeds(search, records, again)
    winner = best_trial(search, found) or best
    stronger = stronger_reference(search, found)
    missed = misses(search, found)[winner.trial_id]
    count = len(again.seeds)
    over = f"{count} fresh seed{'s' * (count > 1)}"
    lines = []
    if stronger is not None:
        none = _none_is_above(search, winner, stronger, bool(missed))
        lines.append(f"{none}, by the means over {over}.")
    elif missed:
        lines.append(_closest(winner, missed))
    rivals = sum(record.kind == "trial" for record in found)
    # The best of several by their means is too high by these means, see docs/decisions.md.
    chosen = f", chosen among {rivals} by these seeds," if rivals > 1 else ""
    tested = _on_test_splits(again, winner.trial_id, FT, trial_label(REFERENCE), chosen)
    tested = tested or _on_test_splits(again, winner.trial_id, ZERO_SHOT, ZERO_SHOT, chosen)
    of_first = ""
    first = first_trial(records)
    if first is not None and first.trial_id != best.trial_id:
        of_first = _on_test_splits(again, best.trial_id, first.trial_id, "the first trial")
    lines += [line for line in (tested, of_first) if line]
    if count < again.wanted:
        over = f"{count} of {again.wanted} seeds so far"
    lines.append(f"{chosen_on(search)}, by the means over {over}.")
    metric = search.objectives[0].metric
    ordered = [*ranked(search, found), *(r for r in found if r.kind == "reference")]
    means = {r.trial_id: value for r in ordered if (value := r.last(metric)) is not None}
    leader = stronger or winner
    # With the figures of the search, where it has trained this model itself.
    own = [r for r in records if r.trial_id == leader.trial_id and r.outcome == "finished"]
    return Conclusion([*own, leader][0], lines, means=means, seeds=again.seeds)


def _none_is_above(
    search: SearchRecord, best: TrialRecord, reference: TrialRecord, is_missed: bool
) -> str:
    """Which reference beats all trials, without the end of the sentence.

    Args:
        is_missed: no trial meets the constraints.
    """
    label, shown, passed = trial_label(reference), list[str](), list[str]()
    for metric, mode in ((one.metric, one.mode) for one in search.objectives):
        values = [value for one in (reference, best) if (value := one.last(metric)) is not None]
        shown.append(" against ".join(_shown(metric, values)))
        passed.append(f"a {'higher' if mode == 'max' else 'lower'} {metric}")
    if is_missed:
        metric = search.objectives[0].metric
        return f"{label} meets the constraints, and no trial does ({metric} {shown[0]})"
    trial = "No trial that meets the constraints" if search.constraints else "No trial"
    return f"{trial} has {' or '.join(passed)} than {label} ({'; '.join(shown)})"


def _closest(best: TrialRecord, missed: dict[str, float]) -> str:
    amounts = " and ".join(f"{text} by {amount:.2g}" for text, amount in missed.items())
    return f"No trial meets the constraints: {best.trial_id} comes closest and misses {amounts}."


def _value(search: SearchRecord, best: TrialRecord) -> str:
    """`the best id_val/nll, 0.41`, where accuracies are not known."""
    metric = search.objectives[0].metric
    value = best.last(metric)
    return f"the best {metric}, {_shown(metric, [math.nan if value is None else value])[0]}"


def _shown(metric: str, values: Sequence[float]) -> list[str]:
    """Values of a metric as tables have them, with more digits where they would be equal."""
    shown = [f"{value:.1f}" if in_percent(metric) else f"{value:.3g}" for value in values]
    return shown if len({*shown}) == len(shown) else [f"{value:.5g}" for value in values]


def _gaps(ours: TrialRecord, its: TrialRecord) -> str:
    """`+9.0 OOD and -0.2 ID`: how two trainings differ in accuracy; empty if it is not known."""
    found = []
    for what, metric in (("OOD", OOD_MEAN_ACC), ("ID", ID_ACC)):
        own, other = ours.last(metric), its.last(metric)
        if own is not None and other is not None:
            found.append(f"{own - other:+z.1f} {what}")
    return " and ".join(found)


def chosen_on(search: SearchRecord) -> str:
    """Which data have chosen, without the end of the sentence."""
    return f"Chosen on validation data{', OOD included' if search.sees_ood else ''}"


def _on_test_splits(
    again: Confirmation, trial_id: str, other_id: str, other: str, chosen: str = ""
) -> str:
    """A sentence on how two models differ on the test splits; empty if they share no seed.

    Args:
        chosen: how the trial was chosen, between commas.
    """
    gaps = {
        what: again.against(other_id, trial_id, str(MetricKey(SPLIT, domain, "acc")))
        for what, domain in (("OOD", MEAN_OOD), ("ID", ID))
    }
    known = {what: gap for what, gap in gaps.items() if gap is not None}
    if not known:
        return ""
    found = "; ".join(f"{what} {_in_words(gap)}" for what, gap in known.items())
    held = coverage(known.values())
    return f"{trial_id}{chosen} against {other}, on the test splits{held}: {found}."


def _in_words(gap: Estimate) -> str:
    """`+1.1 ± 12.7: not told apart`; of one seed the difference alone."""
    shown = f"{gap.mean:+z.1f}"
    if math.isnan(gap.low):
        return f"{shown} (one seed: no interval)"
    verdict = "not told apart"
    if gap.low > 0:
        verdict = "higher"
    elif gap.high < 0:
        verdict = "lower"
    return f"{shown} ± {gap.high - gap.mean:.1f}: {verdict}"


def readings_in_words(readings: Sequence[Reading]) -> str:
    """How often, and for which trials, `confirm` has read the test splits.

    Trials of another choice stand after those whose test accuracies were known when it was made.
    """
    seeds, parts, has_more = dict[str, int](), list[str](), False
    for reading in readings:
        if new := [name for name in reading.trials if name not in seeds]:
            parts.append(", ".join(new))
        has_more |= any(reading.seeds > seeds.get(name, reading.seeds) for name in reading.trials)
        seeds.update(dict.fromkeys(reading.trials, reading.seeds))
    often = {1: "once", 2: "twice"}.get(len(readings), f"{len(readings)} times")
    late = ", chosen when test accuracies were known" if len(parts) > 1 else ""
    more = "; with more seeds after a look, for which ± is too narrow" if has_more else ""
    return f"Test splits read {often}, for {'; then for '.join(parts)}{late}{more}."


def _seeds_of(search: SearchRecord, confirmation: Confirmation, trial_id: str) -> set[int]:
    """The fresh seeds for which a model has all metrics that count."""
    needed = [objective.metric for objective in search.objectives]
    needed += [constraint.metric for constraint in search.constraints]
    return set.intersection(*({*confirmation.values(trial_id, metric)} for metric in needed))


def _with_common_seeds(
    search: SearchRecord, confirmation: Confirmation, best: TrialRecord
) -> Confirmation | None:
    """The confirmation with the seeds of the best trial that FT has, too; None if it has none."""
    seeds = _seeds_of(search, confirmation, best.trial_id)
    seeds = seeds & _seeds_of(search, confirmation, FT) or seeds  # those of FT may have failed
    return replace(confirmation, seeds=tuple(sorted(seeds))) if seeds else None


def _over_fresh_seeds(
    search: SearchRecord, records: Sequence[TrialRecord], again: Confirmation
) -> list[TrialRecord]:
    """The trials and FT with their means over fresh seeds as only report.

    Without those that lack one of the seeds. A bound relative to the best trial is that of these
    means: single trainings are optimistic, and means held against the best of them would miss it.
    """
    known = {record.trial_id: record for record in records}
    known[FT] = replace(REFERENCE, outcome="finished")
    return [
        replace(
            known[one.trial_id],
            curve=({STEP: search.total_steps, **again.means(one.trial_id)},),
        )
        for one in again.configurations
        if one.trial_id in known and {*again.seeds} <= _seeds_of(search, again, one.trial_id)
    ]
