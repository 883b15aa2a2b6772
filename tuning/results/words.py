"""The sentences of a conclusion, made of its facts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, in_percent
from tuning.log.records import ZERO_SHOT, Reading, TrialRecord, trial_label
from tuning.results.estimates import Estimate, coverage
from tuning.results.model import model_in_words
from tuning.results.ranking import finished_trials, first_trial, references
from tuning.results.rules import saw_ood

if TYPE_CHECKING:
    from tuning.results.conclusion import Compared, Conclusion
    from tuning.run import Run


def lines_of(found: Conclusion, *, has_table: bool = False, settings: bool = True) -> list[str]:
    """All sentences.

    Args:
        has_table: leave out what was measured of a model, which a table beside them has.
        settings: beside a model, sentences on settings, too.
    """
    lines: list[str] = []
    of_model = model_in_words(found.run) if found.model else None
    if found.best is None:
        lines.append("No trial has finished yet.")
    elif of_model is not None:
        lines += [of_model.what, *of_model.notes] if has_table else of_model.lines
        lines += of_model.by_rule if settings and not has_table else ()
        if found.seeds and settings:
            lines.append("Settings, which are what a paper reports:")
    if found.best is not None and found.trial is not None and (settings or of_model is None):
        lines += _of_fresh_seeds(found) if found.seeds else _of_search(found, found.trial)
    if found.run.history.damage:
        lines.append(found.run.history.damage)
    if found.problem:
        lines.append(f"Results of confirm are left out: {found.problem}")
    if found.confirmation is not None and found.confirmation.readings:
        lines.append(readings_in_words(found.confirmation.readings))
    return lines


def _of_search(found: Conclusion, trial: TrialRecord) -> Iterator[str]:
    """By the search's own trainings, with one seed each."""
    run = found.run
    stronger = found.stronger
    reference, *_ = references(run.goal, run.records)
    number = len(finished_trials(run.records))
    seeds = "one seed" if (stronger or reference).trial_id == ZERO_SHOT else "one seed each"
    if stronger is not None:
        yield f"{_none_is_above(found, stronger)}: {seeds}."
    elif found.missed:
        yield _closest(found)
    else:
        if number > 1:
            seeds = f"the best of {number}, one seed each: partly luck"
        gaps = _gaps(trial, reference)
        what = f"{gaps} points against {trial_label(reference)}" if gaps else _value(run, trial)
        yield f"{trial.trial_id} has {what} ({seeds}). Confirm it."
    first = first_trial(run.records)
    if stronger is None and first is not None and number > 1:
        if first.trial_id == trial.trial_id:
            yield "It is the first trial: no other one ranks higher."
        elif gaps := _gaps(trial, first):
            yield f"It has {gaps} points against the first trial."
    yield f"{chosen_on(run)}."


def _of_fresh_seeds(found: Conclusion) -> Iterator[str]:
    """By the means over fresh seeds of what `confirm` has trained."""
    count = len(found.seeds)
    fresh = f"{count} fresh seed{'s' * (count > 1)}"
    if found.stronger is not None:
        yield f"{_none_is_above(found, found.stronger)}, by the means over {fresh}."
    elif found.missed:
        yield _closest(found)
    yield from map(_on_test_splits, found.tested)
    wanted = found.confirmation.wanted if found.confirmation else 0
    over = f"{count} of {wanted} seeds so far" if count < wanted else fresh
    yield f"{chosen_on(found.run)}, by the means over {over}."


def _none_is_above(found: Conclusion, reference: TrialRecord) -> str:
    """Which reference beats all trials, without the end of the sentence."""
    assert found.trial is not None
    goal = found.run.goal
    label = trial_label(reference)
    shown: list[str] = []
    passed: list[str] = []
    for metric, mode in ((one.metric, one.mode) for one in goal.objectives):
        known = [one.last(metric) for one in (reference, found.trial)]
        values = [value for value in known if value is not None]
        shown.append(" against ".join(_shown(metric, values)))
        passed.append(f"a {'higher' if mode == 'max' else 'lower'} {metric}")
    if found.missed:
        metric = goal.objectives[0].metric
        return f"{label} meets the constraints, and no trial does ({metric} {shown[0]})"
    trial = "No trial that meets the constraints" if goal.constraints else "No trial"
    return f"{trial} has {' or '.join(passed)} than {label} ({'; '.join(shown)})"


def _closest(found: Conclusion) -> str:
    assert found.trial is not None
    name = found.trial.trial_id
    amounts = " and ".join(f"{text} by {amount:.2g}" for text, amount in found.missed.items())
    return f"No trial meets the constraints: {name} comes closest and misses {amounts}."


def _value(run: Run, best: TrialRecord) -> str:
    """`the best id_val/nll, 0.41`, where accuracies are not known."""
    metric = run.goal.objectives[0].metric
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


def chosen_on(run: Run) -> str:
    """Which data have chosen, without the end of the sentence."""
    return f"Chosen on validation data{', OOD included' if saw_ood(run.goal) else ''}"


def _on_test_splits(one: Compared) -> str:
    """A sentence on how two models differ on the test splits."""
    # The best of several by their means is too high by these means, see docs/decisions.md.
    chosen = f", chosen among {one.rivals} by these seeds," if one.rivals > 1 else ""
    gaps = "; ".join(f"{what} {_in_words(gap)}" for what, gap in one.gaps.items())
    held = coverage(one.gaps.values())
    return f"{one.trial_id}{chosen} against {one.other}, on the test splits{held}: {gaps}."


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
