"""Which of several searches has found the best trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from trainers.evaluation.metrics import MetricKey
from tuning.runs.conclusion import differences_on_test, holds_for, in_words
from tuning.runs.confirmation import confirm_history, read_confirmation
from tuning.runs.environment import seen_at_start
from tuning.runs.ranking import accuracy_margin, best_finished, misses
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.runs.run_folder import RunFolder

Best: TypeAlias = tuple[RunFolder, TrialRecord]
"""A search and its best trial."""
IMAGES: Final = "images"


def better_search(runs: Sequence[RunFolder]) -> str:
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


def _differences(runs: Sequence[RunFolder]) -> list[str]:
    """What makes the values of searches incomparable, as the user knows it."""

    def of(run: RunFolder) -> dict[str, object]:
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
    gaps = differences_on_test(again, ours[1].trial_id, its_again, other[1].trial_id)
    text = f"{ours[0].folder.name} has {in_words(gaps, other[0].folder.name)}" if gaps else ""
    return text and f"{text}, on the test splits over fresh seeds{holds_for(again, its_again)}."
