"""What a search has found, in two sentences: the result, and the limit of what it says."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.ranking import baselines, best_finished, misses, stronger_reference
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.formatting import accuracy_margin, trial_label


def answer(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    """The result and its limit, a sentence each; one sentence while no trial has finished."""
    best = best_finished(search, records)
    if best is None:
        return ["No trial has finished yet."]
    return [_result(search, records, best), _limit(search)]


def _result(search: SearchRecord, records: Sequence[TrialRecord], best: TrialRecord) -> str:
    metric = search.objectives[0].metric
    missed = misses(search, records)[best.trial_id]
    stronger = stronger_reference(search, records)
    if stronger is not None:
        label, values = trial_label(stronger), (stronger.last(metric), best.last(metric))
        why = "meets the constraints, and no trial does" if missed else "is better than every trial"
        shown = " against ".join(f"{value:.4g}" for value in values if value is not None)
        return f"{label} {why}: {metric} {shown}."
    if missed:
        amounts = " and ".join(f"{text} by {amount:.2g}" for text, amount in missed.items())
        return (
            f"No trial meets the constraints: {best.trial_id} comes closest and misses {amounts}."
        )
    reference, *_ = baselines(search, records)
    gains = {
        what: (best.last(key) or 0.0) - reference.metrics[key]
        for what, key in (("OOD", OOD_MEAN_ACC), ("ID", ID_ACC))
        if best.last(key) is not None and key in reference.metrics
    }
    if not gains:
        return f"{best.trial_id} has the best {metric}: {best.last(metric):.4g}."
    # The larger gain is the news; the other accuracy is what it costs.
    (first, gain), *rest = sorted(gains.items(), key=lambda pair: -pair[1])
    compared = f"{'than' if round(gain, 1) else 'as'} {trial_label(reference)}"
    text = f"{best.trial_id} has {_points(gain)} {first} accuracy {compared}"
    return text + "".join(f", at {_points(cost)} {what} accuracy" for what, cost in rest) + "."


def _points(difference: float) -> str:
    size = f"{abs(difference):.1f}"
    if size == "0.0":
        return "the same"
    unit = "point" if size == "1.0" else "points"
    return f"{size} {unit} {'more' if difference > 0 else 'less'}"


def _limit(search: SearchRecord) -> str:
    looks = ", OOD included" if search.sees_ood else ""
    text = f"Chosen on validation data{looks}"
    images = [number for number in search.val_images.values() if number]
    if images:
        text += f"; accuracies are ± {accuracy_margin(50.0, min(images)):.1f} points at most"
    return text + ". Confirm it on fresh seeds before you report it."


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
