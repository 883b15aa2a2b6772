"""The lines of trials between the zero-shot model and the end of their training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC
from tuning.runs.records import SearchRecord, TrialRecord

_POINT = re.compile(rf"line/([^/]+)/{ID_ACC}")
LOW_POINT: Final = 0.5
"""A best point up to here, before an end that is worse than zero-shot, is that of a learning rate
which is too high for the number of steps."""


def accs_of(record: TrialRecord) -> tuple[float, float] | None:
    """ID and mean OOD accuracy in percent at the last report; None if one is missing."""
    id_acc, ood_acc = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return None if id_acc is None or ood_acc is None else (id_acc, ood_acc)


def line_of(record: TrialRecord) -> list[tuple[float, float, float]]:
    """Point, ID and mean OOD accuracy in percent of each measured point of a trial's line."""
    points = []
    for name in record.metrics:
        if match := _POINT.fullmatch(name):
            accs = record.last(name), record.last(f"line/{match[1]}/{OOD_MEAN_ACC}")
            if accs[0] is not None and accs[1] is not None:
                points.append((float(match[1]), accs[0], accs[1]))
    return sorted(points)


def learning_rate_hint(search: SearchRecord, reference: TrialRecord) -> str:
    """The direction in which the line of plain fine-tuning says that its learning rate should move.

    Returns:
        A sentence; nothing if the line is not measured, or does not say.
    """
    metric = MEAN_ACC if search.ood_domains else ID_ACC
    points = {
        float(match[1]): value
        for name in reference.metrics
        if (match := re.fullmatch(rf"line/([^/]+)/{metric}", name))
        and (value := reference.last(name)) is not None
    }
    best, lr = reference.last("line/a"), search.configured("trial", "optim", "lr")
    if best is None or len(points) < 3:
        return ""
    zero_shot, *between, end = (value for _, value in sorted(points.items()))
    if max(*between, end) < zero_shot:
        why = "every point between zero-shot and the end of FT is worse than zero-shot"
        return f"trial.optim.lr = {lr} looks far too high: {why}."
    if best <= LOW_POINT and end < zero_shot:
        why = f"the best point of FT lies at {best:g}, and its end is worse than zero-shot"
        return f"trial.optim.lr = {lr} looks too high: {why}."
    if best == 1 and end > between[-1]:
        return f"trial.optim.lr = {lr} may be too low: FT still improves at its end."
    return ""


def frontier(trials: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    """The results of finished trials, as ID and OOD accuracy, to which none is better in both.

    Without points of lines, which are measured on a sample of the images.
    """
    results = [accs_of(trial) for trial in trials if trial.outcome == "finished"]
    front: list[tuple[float, float]] = []
    for point in sorted(filter(None, results), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]
