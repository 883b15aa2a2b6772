"""The lines of trials between the zero-shot model and the end of their training, as points."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.records import TrialRecord

_POINT = re.compile(rf"line/([^/]+)/{ID_ACC}")


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
