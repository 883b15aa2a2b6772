"""What a search has found: who won, by how much, how far that holds, and what to type next.

Terminal, page, MLflow, notebooks and exported models show this conclusion. It is made from all that
the run folder has: trials, references, and the fresh seeds of `confirm`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, ID_ACC, MEAN_OOD, OOD_MEAN_ACC, MetricKey, val_acc
from tuning.runs.confirmation import (
    FT,
    REFERENCE,
    SPLIT,
    Confirmation,
    difference,
    read_confirmation,
)
from tuning.runs.ranking import (
    QUANTILE,
    accuracy_margin,
    best_trial,
    finished_trials,
    first_trial,
    misses,
    references,
    stronger_reference,
)
from tuning.runs.records import STEP, ZERO_SHOT, SearchRecord, TrialRecord, trial_label
from tuning.runs.seed_noise import deviation_between_seeds, expected_value

Difference: TypeAlias = tuple[str, float, float]
"""`OOD` or `ID`, how much more accuracy one model has than another in points, and half the 95 %
interval of that, 0 if it is not known."""


@dataclass(frozen=True)
class Conclusion:
    """What a search has found."""

    won: TrialRecord | None
    """The trial, reference or zero-shot model to use; None if no trial has a value of the objective
    yet."""
    lines: Sequence[str]
    """Sentences: the result, what it is beside the first trial, and the limit."""
    seeds: Sequence[int] = ()
    """The fresh seeds of `confirm` that decided; none: the search's own trainings did."""
    has_gain: bool = False
    """Whether the first trial stands beside it."""
    confirmation: Confirmation | None = None
    """All results of `confirm`; None before the first, or if they are damaged."""

    def commands(self, run: str) -> list[str]:
        """Confirm the trial that won, or look for a better one than the reference; then export it.

        Args:
            run: what a user types for the run folder.
        """
        won = self.won
        if won is None or won.outcome == "running":
            return []
        export = f"lipsum-tune export {run} --output model   # {trial_label(won)}, for open_clip"
        if self.seeds or won.outcome != "finished":
            return [export]
        if won.kind == "trial":
            rules = "--rule objective --rule first" if self.has_gain else "--rule objective"
            known = {*itertools.chain(*self.confirmation.readings)} if self.confirmation else set()
            again = " --again" if known and won.trial_id not in known else ""
            confirm = f"lipsum-tune confirm {run} {rules}{again}"
            return [f"{confirm}   # fresh seeds, then the test splits, once", export]
        return [f"lipsum-tune resume {run} --trials +8   # no trial is better yet", export]


def conclusion(search: SearchRecord, records: Sequence[TrialRecord]) -> Conclusion:
    """What a search has found so far.

    The best trial won, unless a reference or the zero-shot model beats all trials. If `confirm` has
    trained the best trial again, all that it trained with the same fresh seeds are compared by
    their means on the validation splits: the test splits choose nothing, they measure differences.
    """
    best, notes = best_trial(search, records), [search.damage] if search.damage else []
    if best is None or best.outcome != "finished":
        return Conclusion(best, ["No trial has finished yet.", *notes])
    number, first = len(finished_trials(records)), first_trial(records)
    again = None
    try:
        confirmation = read_confirmation(search)
    except ConfigError as error:
        confirmation = None
        notes.append(f"Results of confirm are left out: {error}")
    if confirmation is not None and confirmation.readings:
        notes.append(readings_in_words(confirmation.readings))
    if confirmation is not None and (again := _with_common_seeds(search, confirmation, best)):
        search, records = _over_fresh_seeds(search, records, again)
        best = best_trial(search, records) or best
    stronger = stronger_reference(search, records)
    deviations = {} if again else _deviations(search, records)
    lines, has_gain = [_result(search, records, best, stronger, again, deviations)], False
    if stronger is None and first is not None and number > 1:
        if first.trial_id == best.trial_id:
            lines.append("It is the first trial: the search has gained nothing over it.")
        elif gaps := _differences(search, best, first, again, deviations):
            is_optimistic = again is None and not all(_is_tie(gap) for gap in gaps)
            why = f" (optimistic, as the best of {number})" if is_optimistic else ""
            lines.append(f"It has {in_words(gaps, 'the first trial')}{why}.")
            has_gain = True
    if again is None and stronger is None:
        lines += _luck(search, records, best)
    limit = f"Chosen on validation data{', OOD included' if search.sees_ood else ''}"
    if again is None:
        if deviations and any("±" in line for line in lines):
            of_seeds = " and ".join(f"{d:.1f} {what}" for what, d in deviations.items())
            covered = f"new {'images and new ' if search.val_images else ''}seeds"
            limit += f"; ± covers {covered} (standard deviation about {of_seeds} points)"
        limit += ". Confirm it on fresh seeds before you report it."
    else:
        limit += f", by the means over {len(again.seeds)} fresh seed{'s' * (len(again.seeds) > 1)}"
        limit += f"{holds_for(again) if '±' in lines[0] else ''}."
    seeds = () if again is None else again.seeds
    return Conclusion(stronger or best, [*lines, limit, *notes], seeds, has_gain, confirmation)


def _result(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    best: TrialRecord,
    stronger: TrialRecord | None,
    again: Confirmation | None,
    deviations: Mapping[str, float],
) -> str:
    metric = search.objectives[0].metric
    missed = misses(search, records)[best.trial_id]
    if stronger is not None:
        label, values = trial_label(stronger), (stronger.last(metric), best.last(metric))
        shown = " against ".join(f"{value:.4g}" for value in values if value is not None)
        if missed:
            return f"{label} meets the constraints, and no trial does: {metric} {shown}."
        return f"No trial is better than {label}: {metric} {shown} of {best.trial_id}."
    if missed:
        amounts = " and ".join(f"{text} by {amount:.2g}" for text, amount in missed.items())
        return (
            f"No trial meets the constraints: {best.trial_id} comes closest and misses {amounts}."
        )
    reference, *_ = references(search, records)
    gaps = _differences(search, best, reference, again, deviations)
    if not gaps:
        return f"{best.trial_id} has the best {metric}: {best.last(metric):.4g}."
    where = "" if again is None else ", on the test splits"
    return f"{best.trial_id} has {in_words(gaps, trial_label(reference))}{where}."


def _luck(search: SearchRecord, records: Sequence[TrialRecord], best: TrialRecord) -> list[str]:
    """A sentence on the objective with a new seed, if it is expected to be worse."""
    if len(search.objectives) > 1 or misses(search, records)[best.trial_id]:
        return []
    (objective,), expected = search.objectives, expected_value(search, records)
    own = best.last(objective.metric)
    if expected is None or own is None or objective.signed(expected) >= objective.signed(own):
        return []
    shown, seen = f"{expected:.3g}", f"{own:.3g}"
    luck = f"Its {objective.metric} of {seen} is partly luck: expect about {shown} with a new seed."
    return [luck] if shown != seen else []


def _deviations(search: SearchRecord, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Standard deviation between seeds by `OOD` and `ID`, as far as the trials tell it."""
    keys = {**({"OOD": OOD_MEAN_ACC} if search.ood_domains else {}), "ID": ID_ACC}
    found = {what: deviation_between_seeds(search, records, key) for what, key in keys.items()}
    return {what: deviation for what, deviation in found.items() if deviation is not None}


def _differences(
    search: SearchRecord,
    ours: TrialRecord,
    its: TrialRecord,
    again: Confirmation | None,
    deviations: Mapping[str, float],
) -> list[Difference]:
    """How two models differ in accuracy: in the search, or on the test splits over fresh seeds.

    In the search, the interval covers other images and other seeds.
    """
    if again is not None:
        return differences_on_test(again, ours.trial_id, again, its.trial_id)
    ood, found = {domain: val_acc(domain) for domain in search.ood_domains}, []
    for what, key, accs in (("OOD", OOD_MEAN_ACC, ood), ("ID", ID_ACC, {search.id_domain: ID_ACC})):
        own, other = ours.last(key), its.last(key)
        if accs and own is not None and other is not None:
            images = _margin(search, accs, ours, its)
            trained = [model for model in (ours, its) if model.trial_id != ZERO_SHOT]
            share = math.sqrt(sum(1 / len(model.over_seeds(key)) for model in trained))
            seeds = QUANTILE * deviations.get(what, 0.0) * share
            found.append((what, own - other, math.hypot(images, seeds)))
    return found


def differences_on_test(
    ours: Confirmation, trial_id: str, its: Confirmation, other_id: str
) -> list[Difference]:
    """How two models of one or two searches differ on the test splits, over two seeds or more."""
    found = []
    for what, domain in (("OOD", MEAN_OOD), ("ID", ID)):
        metric = str(MetricKey(SPLIT, domain, "acc"))
        gap = difference(ours, trial_id, its, other_id, metric)
        if gap is not None and not math.isnan(gap.low):
            found.append((what, gap.mean, gap.high - gap.mean))
    return found


def _margin(
    search: SearchRecord, accs: Mapping[str, str], one: TrialRecord, other: TrialRecord
) -> float:
    """Half the 95 % interval of the difference of two models' mean accuracy, for new images.

    As if they saw different images, so it is too wide rather than too narrow: on the same images
    their errors are alike, and a training with another seed differs as well.

    Args:
        accs: domain -> metric.

    Returns:
        0 if the run did not record the numbers of images.
    """
    images = [search.val_images.get(domain) for domain in accs]
    values = [model.last(key) for model in (one, other) for key in accs.values()]
    parts = [
        accuracy_margin(50.0 if acc is None else acc, number)
        for acc, number in zip(values, 2 * images, strict=True)
        if number
    ]
    return math.hypot(*parts) / len(accs) if len(parts) == len(values) else 0.0


def readings_in_words(readings: Sequence[tuple[str, ...]]) -> str:
    """How often, and for which trials, `confirm` has read the test splits.

    Trials of another choice stand after those whose test accuracies were known when it was made.
    """
    known, parts = set[str](), list[str]()
    for names in readings:
        if new := [name for name in names if name not in known]:
            parts.append(", ".join(new))
        known.update(names)
    often = {1: "once", 2: "twice"}.get(len(readings), f"{len(readings)} times")
    late = ", chosen when test accuracies were known" if len(parts) > 1 else ""
    return f"Test splits read {often}, for {'; then for '.join(parts)}{late}."


def _is_tie(gap: Difference) -> bool:
    _, difference, margin = gap
    return abs(difference) <= margin or round(difference, 1) == 0


def holds_for(*found: Confirmation) -> str:
    """The end of a sentence with intervals of test accuracies."""
    images = "and new images" if all(one.has_predictions for one in found) else "alone"
    return f"; ± holds for new seeds {images}"


def in_words(gaps: Sequence[Difference], other: str) -> str:
    """The larger gain first, which is the news; the other accuracy is what it costs."""
    first, *rest = sorted(gaps, key=lambda gap: (_is_tie(gap), -gap[1]))
    return _words(first, other) + "".join(f", at {_words(gap)}" for gap in rest)


def _words(gap: Difference, other: str = "") -> str:
    """`4.4 ± 2.4 points more OOD accuracy than untuned FT`, or `the same OOD accuracy ...`."""
    what, difference, margin = gap
    if _is_tie(gap):
        within = f" within ± {margin:.1f}" if margin else ""
        return f"the same {what} accuracy" + (f" as {other}" if other else "") + within
    size, more = f"{abs(difference):.1f}", "more" if difference > 0 else "less"
    unit = "point" if size == "1.0" and not margin else "points"
    size += f" ± {margin:.1f}" if margin else ""
    return f"{size} {unit} {more} {what} accuracy" + (f" than {other}" if other else "")


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
) -> tuple[SearchRecord, list[TrialRecord]]:
    """The trials and FT with their means over fresh seeds as only report, and what compares them.

    Without those that lack one of the seeds.
    """
    # Bounds relative to the best trial are those that the search itself has set.
    bests = search.bests(records)
    bounds = [(c, c.bound(search.zero_shot, bests.get(c.text))) for c in search.constraints]
    fixed = [replace(c, anchor=None, offset=b) for c, b in bounds if b is not None]
    known = {record.trial_id: record for record in records}
    known[FT] = replace(REFERENCE, outcome="finished")
    found = [
        replace(
            known[one.trial_id],
            repetitions={},  # their seeds have chosen the trial
            curve=({STEP: search.total_steps, **again.means(one.trial_id)},),
        )
        for one in again.configurations
        if one.trial_id in known and {*again.seeds} <= _seeds_of(search, again, one.trial_id)
    ]
    return replace(search, constraints=tuple(fixed)), found
