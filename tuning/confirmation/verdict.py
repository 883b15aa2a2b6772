"""Which model a search recommends, why, and the commands to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.results import (
    FT,
    REFERENCE,
    SPLIT,
    paired_difference,
    read_confirmation,
)
from tuning.runs.ranking import best_finished, best_trial, choice_of, misses, stronger_reference
from tuning.runs.records import STEP, SearchRecord, TrialRecord
from tuning.runs.run_folder import LoadedRun
from tuning.views.answer import answer
from tuning.views.formatting import trial_label


@dataclass(frozen=True)
class Verdict:
    """The trial, reference or zero-shot model to use."""

    record: TrialRecord
    """Its kind is `reference` for plain fine-tuning and for the zero-shot model."""
    label: str
    """`trial-007`, `untuned FT` or `zero-shot`."""
    why: str
    """How it was chosen, in one or a few sentences."""
    seeds: int = 0
    """Number of fresh seeds of `confirm` that decided; 0: the search's own training did."""


def verdict(search: SearchRecord, records: Sequence[TrialRecord]) -> Verdict | None:
    """The model to use: the best trial, or the reference or zero-shot model that beats all trials.

    If `confirm` has trained the best trial again, all that it trained with the same fresh seeds are
    compared by their means, on the validation splits: the test splits choose nothing.

    Returns:
        None if no trial has a value of the objective yet.

    Raises:
        ConfigError: the results of `confirm` are damaged.
    """
    best = best_trial(search, records)
    if best is None:
        return None
    again, seeds = _over_fresh_seeds(search, records, best)
    if again:
        # Bounds relative to the best trial are those that the search itself has set.
        bests = search.bests(records)
        bounds = [(c, c.bound(search.zero_shot, bests.get(c.text))) for c in search.constraints]
        fixed = [replace(c, anchor=None, offset=b) for c, b in bounds if b is not None]
        search = replace(search, constraints=tuple(fixed))
        records, best = again, best_trial(search, again) or best
    won, metric = stronger_reference(search, records) or best, search.objectives[0].metric
    label, why = trial_label(won), choice_of(search, records, best)
    if won is not best:
        missed = misses(search, records)[best.trial_id]
        why = "It meets the constraints, and no trial does" if missed else "No trial is better"
        if not seeds:
            why += (
                f": {metric} = {won.last(metric):.4g} against {best.last(metric):.4g} of the best"
            )
        why += "."
    if seeds:
        shown = [won, *(record for record in records if record is not won)]
        values = [f"{trial_label(r)} {r.last(metric):.4g}" for r in shown]
        why += f" Compared by the means over {seeds} fresh seeds on the validation splits"
        why += f": {metric} {', '.join(values)}."
    return Verdict(won, label, why, seeds)


def findings(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    """What was found, then its limit: over the fresh seeds of `confirm`, else by the search."""
    try:
        won = verdict(search, records)
    except ConfigError as error:
        return [*answer(search, records), f"Results of confirm are left out: {error}"]
    if won is None or not won.seeds:
        return answer(search, records)
    limit = f"The report has the test accuracies over {won.seeds} fresh seeds."
    return [f"{won.label}. {won.why}", limit]


def better_search(runs: Sequence[LoadedRun]) -> str:
    """Which of several searches has found the best trial, and how far it is from the next one's.

    The searches are ordered by the objective, on the validation splits. If `confirm` has trained
    both trials with two or more common seeds, and on the same test splits, the difference in
    accuracy there is told.

    Returns:
        Two sentences; nothing if fewer than two searches have a trial, or objectives differ.

    Raises:
        ConfigError: the results of `confirm` are damaged.
    """
    bests = [(run, best_finished(run.search, run.history.records)) for run in runs]
    metric = runs[0].file.objectives[0].metric
    found = [(run, best, v) for run, best in bests if best and (v := best.last(metric)) is not None]
    if len(found) < 2 or len({run.file.objectives for run in runs}) > 1:
        return ""
    found.sort(key=lambda each: each[0].search.values(each[1]) or (), reverse=True)
    (won, best, value), (other, next_best, its) = found[:2]
    text = f"{won.folder.name} is ahead of {other.folder.name} by {metric} {value:.4g} to {its:.4g}"
    text += ", on validation data."
    again, its_again = read_confirmation(won.search), read_confirmation(other.search)
    gaps = []
    # Equal results of the zero-shot model show that the test splits and the model are the same.
    if again and its_again and again.zero_shot == its_again.zero_shot:
        for what, domain in (("OOD", MEAN_OOD), ("ID", ID)):
            name = str(MetricKey(SPLIT, domain, "acc"))
            values = again.values(best.trial_id, name), its_again.values(next_best.trial_id, name)
            if len(values[0].keys() & values[1].keys()) > 1:
                gap = paired_difference(*values)
                gaps.append(f"{what} {gap.mean:+.1f} [{gap.low:.1f}, {gap.high:.1f}]")
    if not gaps:
        return f"{text} Confirm both with the same seeds before you choose."
    return f"{text} Over fresh seeds, test accuracy differs by {' and '.join(gaps)}."


def _over_fresh_seeds(
    search: SearchRecord, records: Sequence[TrialRecord], best: TrialRecord
) -> tuple[list[TrialRecord], int]:
    """The trials and FT with their means over fresh seeds as only report.

    The seeds are those of the best trial that FT has, too. Without trials that lack one of them, or
    a metric that counts.

    Returns:
        The records, and the number of seeds; nothing if the best trial has none.
    """
    confirmation = read_confirmation(search)
    if confirmation is None:
        return [], 0
    values, needed = confirmation.values, [o.metric for o in search.objectives]
    needed += [constraint.metric for constraint in search.constraints]

    def seeds_of(trial_id: str) -> set[int]:
        return set.intersection(*(set(values(trial_id, metric)) for metric in needed))

    seeds, known = seeds_of(best.trial_id), {record.trial_id: record for record in records}
    seeds = seeds & seeds_of(FT) or seeds  # a training of FT may have failed
    known[FT] = replace(REFERENCE, outcome="finished", curve=best.curve)
    confirmation = replace(confirmation, seeds=tuple(sorted(seeds)))
    names = [one.trial_id for one in confirmation.configurations]
    again = [
        replace(
            known[name],
            repetitions={},  # their seeds have chosen the trial
            curve=({STEP: known[name].step, **confirmation.means(name)},),
        )
        for name in names
        if seeds and name in known and seeds <= seeds_of(name)
    ]
    return again, len(seeds)
