"""What a confirmation has measured: read from the journal of its run, `confirm/journal.jsonl`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Final, TypeAlias

from scipy import stats

from trainers.evaluation.metrics import MetricKey
from tuning.runs.journal import JOURNAL_FILE, History, read_history
from tuning.runs.records import METHOD_KEY, ZERO_SHOT, SearchRecord, TrialRecord, zero_shot_record
from tuning.runs.run_folder import CONFIRM_FOLDER as CONFIRM_FOLDER
from tuning.selection.rules import looks_at_ood

FT = "ft"
"""Id of the reference, plain fine-tuning."""
SPLIT = "test"
END = "line/1/"
"""Prefix of test accuracies at the end of a training."""
CONFIDENCE = 0.95

Key: TypeAlias = tuple[str, int | None]
"""Trial id and seed; the seed of the zero-shot model is None."""
REFERENCE: Final = TrialRecord(FT, -1, "reference", {METHOD_KEY: FT})
"""Plain fine-tuning, which is trained again beside the trials."""


def rules_of(configuration: TrialRecord) -> set[str]:
    """The rules that chose a configuration, without rank, domain or method."""
    return {re.split("[/ ]", label)[0] for label in configuration.labels}


def chosen_with_ood(search: SearchRecord, configuration: TrialRecord) -> bool:
    """Whether a rule that chose a configuration used OOD validation data."""
    return any(looks_at_ood(search, rule) for rule in rules_of(configuration))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval, in the unit of the values.

    All but the mean are NaN for one seed.
    """

    mean: float
    sd: float
    """Sample standard deviation (n - 1 in the denominator)."""
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95 % interval of independent, normal values, at least one."""
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan, math.nan)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, stdev(values), mean - margin, mean + margin)


def paired_difference(of: Mapping[int, float], against: Mapping[int, float]) -> Estimate:
    """The mean of `of` - `against`, seed by seed, over the seeds that both have.

    Both map seeds to values. Pairing removes the variation that two runs with the same seed share
    (batches, crops).
    """
    return estimate([value - against[s] for s, value in of.items() if s in against])


@dataclass(frozen=True)
class Confirmation:
    """The results on the test splits over fresh seeds."""

    search: SearchRecord
    seeds: tuple[int, ...]
    configurations: tuple[TrialRecord, ...]
    """`REFERENCE`, then trials with the labels of the rules that chose them."""
    results: Mapping[Key, TrialRecord]
    """All results, including those of earlier calls with other seeds or configurations. The last
    report of each has the metrics of the test splits."""
    failed: Mapping[Key, str]
    """Trainings that failed, with the error in one line; the next call tries them again."""

    @property
    def zero_shot(self) -> Mapping[str, float]:
        """Finite metrics of the zero-shot model; empty before they are known."""
        result = self.results.get((ZERO_SHOT, None))
        metrics = result.metrics if result else {}
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def values(self, trial_id: str, metric: str) -> dict[int, float]:
        """Seed -> value, for the seeds that have a finite value of the metric.

        The zero-shot model has the same value for each seed.
        """
        constant = self.results.get((trial_id, None))
        results = {seed: self.results.get((trial_id, seed), constant) for seed in self.seeds}
        found = {seed: r.last(metric) for seed, r in results.items() if r}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, trial_id: str, metric: str) -> Estimate | None:
        """The mean over the seeds; None if none has a result."""
        values = self.values(trial_id, metric)
        return estimate(list(values.values())) if values else None

    def means(self, trial_id: str) -> dict[str, float]:
        """The mean of each metric over the seeds that have a result."""
        results = [r for seed in self.seeds if (r := self.results.get((trial_id, seed)))]
        names = dict.fromkeys(name for result in results for name in result.metrics)
        found = {name: self.estimate(trial_id, name) for name in names}
        return {name: estimate.mean for name, estimate in found.items() if estimate}

    def against(self, other_id: str, trial_id: str, metric: str) -> Estimate | None:
        """The difference to another model, paired by seed; None if they share no value."""
        ours, its = self.values(trial_id, metric), self.values(other_id, metric)
        return paired_difference(ours, its) if ours.keys() & its.keys() else None


def training_name(key: Key, attempt: int = 1) -> str:
    """Name of a training in the journal: `trial-007-seed-1003`, then `...-try-2` if it failed."""
    trial_id, seed = key
    return f"{trial_id}-seed-{seed}" + (f"-try-{attempt}" if attempt > 1 else "")


def key_of(record: TrialRecord) -> Key:
    """What a training of the journal confirms, and with which seed."""
    return record.trial_id.partition("-seed-")[0], int(record.params["seed"])


def results_path(run_folder: Path) -> Path:
    """The journal of the confirmation of a search."""
    return run_folder / CONFIRM_FOLDER / JOURNAL_FILE


def confirm_history(run_folder: Path) -> History:
    """The contents of the journal of a confirmation; empty before the first.

    Raises:
        ConfigError: it is damaged.
    """
    path = results_path(run_folder)
    return read_history(path.parent) if path.is_file() else History()


def results_of(history: History) -> dict[Key, TrialRecord]:
    """The finished trainings by trial and seed, in the order of their start, after zero-shot."""
    found: dict[Key, TrialRecord] = {}
    if history.zero_shot is not None:
        found[ZERO_SHOT, None] = zero_shot_record(history.zero_shot)
    finished = [record for record in history.records if record.outcome == "finished"]
    return found | {key_of(record): _with_end(record) for record in finished}


def _with_end(record: TrialRecord) -> TrialRecord:
    """The record with its accuracies at the end of the line.

    A training measures them only where it has chosen another point.
    """
    metrics = record.metrics
    if metrics.get("line/a") != 1:
        return record
    keys = {name: MetricKey.parse(name) for name in metrics if name.endswith("acc")}
    ends = {END + name: metrics[name] for name, key in keys.items() if key and key.split == SPLIT}
    return replace(record, curve=(*record.curve[:-1], {**metrics, **ends}))


def failures_of(history: History) -> dict[Key, list[TrialRecord]]:
    """The trainings that have failed, those without a result since."""
    done, found = results_of(history), dict[Key, list[TrialRecord]]()
    for record in history.records:
        if record.outcome == "failed" and key_of(record) not in done:
            found.setdefault(key_of(record), []).append(record)
    return found


def read_confirmation(search: SearchRecord) -> Confirmation | None:
    """The results of all calls so far, with every seed; None before the first.

    Each trial has the labels of the rules that chose it in any call.

    Raises:
        ConfigError: the results are damaged.
    """
    history = confirm_history(search.run_folder)
    results = results_of(history)
    if not results:
        return None
    found = {FT: REFERENCE}
    for (trial_id, seed), result in results.items():
        if seed is None or trial_id == FT:
            continue
        params = {key: value for key, value in result.params.items() if key != "seed"}
        earlier = found[trial_id].labels if trial_id in found else ()
        labels = tuple(dict.fromkeys((*earlier, *result.labels)))
        found[trial_id] = replace(result, trial_id=trial_id, params=params, labels=labels)
    seeds = sorted({seed for _, seed in results if seed is not None})
    failed = {key: attempts[-1].error_line for key, attempts in failures_of(history).items()}
    return Confirmation(search, tuple(seeds), tuple(found.values()), results, failed)
