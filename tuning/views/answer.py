"""What a search has found, in two sentences: the result, and the limit of what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.ranking import (
    accuracy_margin,
    baselines,
    best_finished,
    misses,
    stronger_reference,
)
from tuning.runs.records import SearchRecord, TrialRecord, trial_label


def answer(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    """The result and its limit, a sentence each; one sentence while no trial has finished."""
    best = best_finished(search, records)
    if best is None:
        return ["No trial has finished yet."]
    looks = ", OOD included" if search.sees_ood else ""
    limit = f"Chosen on validation data{looks}. Confirm it on fresh seeds before you report it."
    return [_result(search, records, best), limit]


def _result(search: SearchRecord, records: Sequence[TrialRecord], best: TrialRecord) -> str:
    metric = search.objectives[0].metric
    missed = misses(search, records)[best.trial_id]
    stronger = stronger_reference(search, records)
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
    reference, *_ = baselines(search, records)
    ood = {domain: val_acc(domain) for domain in search.ood_domains}
    differences = []
    for what, key, accs in (("OOD", OOD_MEAN_ACC, ood), ("ID", ID_ACC, {search.id_domain: ID_ACC})):
        value = best.last(key)
        if value is not None and key in reference.metrics:
            margin = _margin(search, accs, best, reference)
            differences.append((what, value - reference.metrics[key], margin))
    if not differences:
        return f"{best.trial_id} has the best {metric}: {best.last(metric):.4g}."
    # The larger gain is the news; the other accuracy is what it costs.
    first, *rest = sorted(differences, key=lambda each: (_is_tie(*each[1:]), -each[1]))
    text = f"{best.trial_id} has {_words(*first, trial_label(reference))}"
    return text + "".join(f", at {_words(*each)}" for each in rest) + "."


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


def _is_tie(difference: float, margin: float) -> bool:
    return abs(difference) <= margin or round(difference, 1) == 0


def _words(what: str, difference: float, margin: float, other: str = "") -> str:
    """`4.4 ± 2.4 points more OOD accuracy than untuned FT`, or `the same OOD accuracy ...`."""
    if _is_tie(difference, margin):
        within = f" within ± {margin:.1f}" if margin else ""
        return f"the same {what} accuracy" + (f" as {other}" if other else "") + within
    size, more = f"{abs(difference):.1f}", "more" if difference > 0 else "less"
    unit = "point" if size == "1.0" and not margin else "points"
    size += f" ± {margin:.1f}" if margin else ""
    return f"{size} {unit} {more} {what} accuracy" + (f" than {other}" if other else "")


def commands_after(won: TrialRecord, run: str, *, is_confirmed: bool = False) -> list[str]:
    """Confirm the trial that won, or look for a better one than the reference; then export it.

    Args:
        run: what a user types for the run folder.
    """
    export = f"lipsum-tune export {run} --output model   # {trial_label(won)}, for open_clip"
    if is_confirmed or won.outcome != "finished":
        return [export]
    if won.kind == "trial":
        confirm = f"lipsum-tune confirm {run} --rule objective"
        return [f"{confirm}   # fresh seeds, then the test splits, once", export]
    return [f"lipsum-tune resume {run} --trials +8   # no trial is better yet", export]
