"""Which model a search recommends, why, and the commands to go on with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.runs.confirmation import (
    FT,
    REFERENCE,
    SPLIT,
    confirm_history,
    difference,
    read_confirmation,
)
from tuning.runs.environment import seen_at_start
from tuning.runs.ranking import (
    accuracy_margin,
    best_finished,
    best_trial,
    choice_of,
    misses,
    stronger_reference,
)
from tuning.runs.records import STEP, SearchRecord, TrialRecord, trial_label
from tuning.runs.run_folder import LoadedRun
from tuning.views.answer import answer

Best: TypeAlias = tuple[LoadedRun, TrialRecord]
"""A search and its best trial."""
IMAGES: Final = "images"


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
    """Which of several searches has found the best trial, as far as they can be compared.

    The best trials are compared by the objectives, on the validation splits; a difference within
    the margin of the accuracies is none. Then follow the differences in test accuracy, if `confirm`
    has trained both with common seeds.

    Returns:
        A few sentences; nothing if fewer than two searches have a finished trial.

    Raises:
        ConfigError: the results of `confirm` are damaged.
    """
    bests = [(run, best_finished(run.search, run.history.records)) for run in runs]
    found = [(run, best) for run, best in bests if best is not None]
    if len(found) < 2:
        return ""
    if differences := _differences([run for run, _ in found]):
        names, of = (" and ".join(x) for x in ([r.folder.name for r, _ in found], differences))
        again = _on_test_splits(*found) if len(found) == 2 and IMAGES not in differences else ""
        text = f"{names} cannot be compared on validation data: they differ in {of}."
        return f"{text} {again}".rstrip()
    met = [(r, b) for r, b in found if not misses(r.search, r.history.records)[b.trial_id]]
    if len(met) < 2:
        has = f"Only {met[0][0].folder.name} has" if met else "None of these searches has"
        return f"{has} a trial that meets the constraints."
    text, pair = _by_objectives(met)
    again = _on_test_splits(*pair) or "Confirm both with the same seeds before you choose."
    return f"{text} {again}"


def _differences(runs: Sequence[LoadedRun]) -> list[str]:
    """What makes the values of searches incomparable, as the user knows it."""

    def of(run: LoadedRun) -> dict[str, object]:
        trial, data = run.file.trial, run.file.trial.data
        images = seen_at_start(run.folder) or data.root
        files = seen_at_start(run.folder, "model") or {}
        return {
            IMAGES: (images, data.id_domain, data.ood_domains, data.suite),
            "trial.model": (trial.model, sorted(files.values())),
            "trial.steps": trial.steps,
            "search.objective": run.file.objectives,
            "search.constraints": run.file.search.constraints,
        }

    first, *others = map(of, runs)
    return [name for name in first if any(other[name] != first[name] for other in others)]


def _by_objectives(found: Sequence[Best]) -> tuple[str, Sequence[Best]]:
    """Whether one best trial is ahead of all others, and the two that a sentence names."""
    search = found[0][0].search
    metrics = [objective.metric for objective in search.objectives]
    margins = [_margin(search, metric) for metric in metrics]
    won, *others = sorted(found, key=lambda one: search.values(one[1]) or (), reverse=True)

    def gaps(other: Best) -> list[float]:
        pairs = zip(search.values(won[1]) or (), search.values(other[1]) or (), strict=True)
        return [ours - its for ours, its in pairs]

    def is_behind(other: Best) -> bool:
        of = gaps(other)
        return min(of) >= 0 and any(gap > m for gap, m in zip(of, margins, strict=True))

    other = next((other for other in others if not is_behind(other)), others[0])
    shown = " and ".join(
        f"{metric} {won[1].last(metric):.4g} to {other[1].last(metric):.4g}" for metric in metrics
    )
    names = f"{won[0].folder.name} and {other[0].folder.name}"
    if is_behind(other):
        text = f"{won[0].folder.name} is ahead of {other[0].folder.name} by {shown}"
    elif all(abs(gap) <= m for gap, m in zip(gaps(other), margins, strict=True)):
        text = f"No difference between {names}: {shown}"
        text += f", ± {max(margins):.1f} points at most" if max(margins) else ""
    else:
        text = f"Neither of {names} is ahead in all objectives: {shown}"
    return f"{text}, on validation data.", (won, other)


def _margin(search: SearchRecord, metric: str) -> float:
    """Half the 95 % interval of a validation accuracy at most, in points; 0 for other metrics."""
    key, images = MetricKey.parse(metric), [n for n in search.val_images.values() if n]
    is_accuracy = key is not None and key.measure in ("acc", "class_acc")
    return accuracy_margin(50.0, min(images)) if images and is_accuracy else 0.0


def _on_test_splits(ours: Best, other: Best) -> str:
    """The differences in test accuracy over common seeds; nothing without two of them."""
    again, its_again = (read_confirmation(run.search) for run, _ in (ours, other))
    splits, its_splits = (confirm_history(run.folder).fingerprints for run, _ in (ours, other))
    if again is None or its_again is None or splits != its_splits:
        return ""
    gaps, covers = [], True
    for what, domain in (("OOD", MEAN_OOD), ("ID", ID)):
        metric = str(MetricKey(SPLIT, domain, "acc"))
        gap = difference(again, ours[1].trial_id, its_again, other[1].trial_id, metric)
        if gap is not None and not math.isnan(gap.low):
            none = ", no difference" if gap.low <= 0 <= gap.high else ""
            gaps.append(f"{what} {gap.mean:+.1f} [{gap.low:.1f}, {gap.high:.1f}]{none}")
            covers = covers and gap.covers_images
    if not gaps:
        return ""
    text = f"{ours[0].folder.name} minus {other[0].folder.name} in test accuracy over fresh seeds"
    holds = "new seeds and new images" if covers else "new seeds on these images alone"
    return f"{text}: {'; '.join(gaps)}. The intervals hold for {holds}."


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
