"""Confirm what a search chose: train it again on fresh seeds, and only then read the test splits.

The figures that chose a trial are optimistic about it: they are the best of many, on the very
images and the very seed that chose it. A confirmation is not. What is trained is fixed before,
by rules that saw validation data alone; the seeds are new, and the same for every configuration
and for plain fine-tuning, so that differences can be taken seed by seed; and a test split is
evaluated once for each, after the last step. Nothing else reads the test splits
but `zero-shot`, which selects nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from rich.console import Console

from trainers.checks import check_data, trial_parts
from trainers.data.data_root import resolve_root
from trainers.errors import ConfigError, did_you_mean
from tuning.checkpoints.files import TRAIN_FOLDER
from tuning.checkpoints.storage_check import check_nodes
from tuning.confirmation.jobs import jobs, run_jobs
from tuning.confirmation.results import (
    CONFIRM_FOLDER,
    FT,
    Configuration,
    Confirmation,
    Key,
    ResultsFile,
    read_results,
    write_results_table,
)
from tuning.execution.ray_session import ray_session
from tuning.execution.signals import interrupted_by_sigterm
from tuning.mlflow_logging.client import tracking_uri
from tuning.mlflow_logging.results import log_confirmation
from tuning.runs.environment import check_same_data
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.runs.run_folder import load_run
from tuning.selection.rules import BY_METHOD, OBJECTIVE, PARETO, RULES, Choice, choices, ranked

FIRST_FRESH_SEED = 1000
"""Added to the seed of the search's trials."""


def confirm(
    folder: Path,
    *,
    top: int = 1,
    seeds: int = 5,
    rules: Sequence[str] = (),
    address: str | None = None,
    console: Console | None = None,
) -> Confirmation:
    """Train the chosen configurations of a search on fresh seeds, then read the test splits.

    What was measured by an earlier call is taken from the run folder, not measured again.

    Args:
        folder: the run folder of a search.
        top: how many trials to confirm, best first by the search's objective.
        seeds: fresh ones, the same for every configuration.
        rules: of `tuning.selection.rules`, whose choices to confirm, the objective being one; by
            default all but the Pareto front.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for a line a result; by default the terminal's standard error.

    Raises:
        ConfigError: no trial has finished, no such rule, fewer than two seeds, a domain without a
            test split, or data that have changed since the search.
    """
    console = console or Console(stderr=True)
    if seeds < 2:
        raise ConfigError(f"--seeds {seeds}: an interval takes two seeds or more")
    run = load_run(folder)
    search, file, records = run.search, run.file, run.history.records
    configurations = (Configuration(FT, {}, method=FT), *chosen(search, records, top, rules))
    if run.history.outcome is None:
        console.print(
            f"note: the search {search.name} has not ended, it runs or was killed: "
            "trials that finish later are not among the choices"
        )
    fresh = fresh_seeds(file.trial.seed, records, seeds)
    wanted = jobs(file, configurations, fresh)
    failed: dict[Key, str] = {}
    if any(job.key not in read_results(run.folder) for job in wanted):
        data = file.trial.data
        check_data(data, [*trial_parts(data), *((domain, "test") for domain in data.domains)])
        resolve_root(data.root, progress=True)
        check_same_data(run.folder, data)
        with ResultsFile(run.folder) as results, ray_session(address), interrupted_by_sigterm():
            stored = read_results(run.folder)
            missing = [job for job in wanted if job.key not in stored]
            check_nodes(file, run.home)
            checkpoints = f"{run.home}/{CONFIRM_FOLDER}/{TRAIN_FOLDER}"
            failed = run_jobs(missing, file.search.resources, results, checkpoints, console)
    stored = read_results(run.folder)
    write_results_table(run.folder, list(stored.values()))
    confirmation = Confirmation(search, fresh, configurations, stored, failed)
    uri = tracking_uri(file.search.tracking.uri, run.folder.parent)
    log_confirmation(uri, file.search.tracking.experiment, confirmation)
    return confirmation


def chosen(
    search: SearchRecord, records: Sequence[TrialRecord], top: int = 1, rules: Sequence[str] = ()
) -> tuple[Configuration, ...]:
    """The finished trials to confirm, each once, with every reason for it.

    Args:
        search: what its objective is.
        records: all its trials.
        top: of the objective's ranking.
        rules: as of `confirm`.

    Raises:
        ConfigError: there is none, no such rule, or `top` is not positive.
    """
    for rule in rules:
        if rule not in RULES:
            raise ConfigError(f"--rule {rule!r}: no such rule{did_you_mean(rule, RULES)}")
    if top < 1:
        raise ConfigError(f"--top {top}: at least one")
    wanted = set(rules) or RULES.keys() - {PARETO}
    found: dict[str, Configuration] = {}
    for rule, label, trial, looks_at_ood in _picks(search, records, top):
        if rule not in wanted or trial.outcome != "finished":
            continue
        new = Configuration(trial.trial_id, trial.params, method=search.method(trial))
        earlier = found.get(trial.trial_id, new)
        found[trial.trial_id] = replace(
            earlier,
            labels=(*earlier.labels, label),
            looks_at_ood=earlier.looks_at_ood or looks_at_ood,
            best_of_method=earlier.best_of_method or rule == BY_METHOD,
        )
    if not found and set(rules) == {BY_METHOD} and len(search.methods(records)) < 2:
        raise ConfigError(f"--rule {BY_METHOD}: all trials of this search have the same method")
    if not found:
        raise ConfigError(f"{search.run_folder}: no finished trial to confirm")
    return tuple(found.values())


def _picks(
    search: SearchRecord, records: Sequence[TrialRecord], top: int
) -> Iterable[tuple[str, str, TrialRecord, bool]]:
    """Rule, label, trial, and whether OOD validation data had a say."""
    ranking = [trial for trial in ranked(search, records) if search.values(trial) is not None]
    for rank, trial in enumerate(ranking[:top], 1):
        yield OBJECTIVE, f"{OBJECTIVE} #{rank}", trial, search.sees_ood
    for choice in choices(search, records):
        for trial in choice.trials if choice.rule != OBJECTIVE else ():
            yield choice.rule, _label(choice, trial), trial, choice.looks_at_ood


def _label(choice: Choice, trial: TrialRecord) -> str:
    """The rule, and where it chose the trial for some purpose only, for which."""
    parts = {**choice.by_domain, **choice.by_method}
    its = [name for name, one in parts.items() if one.trial_id == trial.trial_id]
    some = choice.by_method or 0 < len(its) < len(parts)
    return f"{choice.rule}/{'+'.join(its)}" if some else choice.rule


def fresh_seeds(base: int, records: Iterable[TrialRecord], number: int) -> tuple[int, ...]:
    """Seeds from base + FIRST_FRESH_SEED on, none of which a trial of the search has used."""
    used = {record.params.get("seed") for record in records}
    fresh = (seed for seed in count(base + FIRST_FRESH_SEED) if seed not in used)
    return tuple(islice(fresh, number))
