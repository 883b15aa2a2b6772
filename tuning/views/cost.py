"""What the trials of a search cost, and what more of them would probably gain, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from tuning.runs.ranking import contenders
from tuning.runs.records import SECONDS, SearchRecord, TrialRecord
from tuning.views.formatting import format_hours, format_metric, format_seconds

MIN_TRIALS = 8
"""Finished trials from which on the gain of more trials is estimated."""


def cost_sentences(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    """The time of all trials and its shares, and the gain of doubling the search."""
    ended = [record for record in records if record.ended_at is not None]
    total = sum(record.seconds or 0.0 for record in ended)
    if not total:
        return []
    inside = sum(record.last(SECONDS) or 0.0 for record in ended)
    evaluating = sum(record.last("cost/eval_seconds") or 0.0 for record in ended)
    shares = {
        "training and checkpoints": inside - evaluating,
        "evaluation": evaluating,
        "starting and waiting": max(0.0, total - inside),
    }
    parts = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares.items())
    gpu_hours = sum(record.gpu_seconds(record.ended_at or 0.0) for record in ended) / 3600
    cost = f"{format_hours(gpu_hours)} GPU-hours" if gpu_hours else format_seconds(total)
    sentences = [f"All trials together took {cost}: {parts}."]
    if (gain := gain_of_doubling(search, records)) is not None:
        metric = search.objectives[0].metric
        sentences.append(
            f"In a random half of the finished trials, the best {metric} is on average "
            f"{format_metric(metric)(gain)} worse. So as many trials again, for another {cost}, "
            "will probably improve it by no more than that."
        )
    elif len(search.objectives) == 1:
        needed = f"{MIN_TRIALS} finished trials"
        needed += " that meet the constraints" if search.constraints else ""
        sentences.append(f"What more trials would gain is estimated from {needed} on.")
    return sentences


def gain_of_doubling(search: SearchRecord, records: Sequence[TrialRecord]) -> float | None:
    """How much worse the best objective is, on average, in a random half of the finished trials.

    Accuracies have an upper limit, near which independent draws gain less from each doubling, and a
    sampler proposes its best trials late, so this is rather too much for the next doubling. None
    with several objectives or fewer than `MIN_TRIALS` finished trials to choose among.
    """
    finished = [record for record in records if record.outcome == "finished"]
    (objective, *others), chosen = search.objectives, contenders(search, finished, search.values)
    values = sorted(objective.signed(record.metrics[objective.metric]) for record in chosen)
    if others or len(values) < MIN_TRIALS:
        return None
    half = len(values) // 2
    # The value at index i is the largest of `half` draws if the others are among the i below it.
    chances = [comb(index, half - 1) / comb(len(values), half) for index in range(len(values))]
    expected = sum(chance * value for chance, value in zip(chances, values, strict=True))
    return values[-1] - expected
