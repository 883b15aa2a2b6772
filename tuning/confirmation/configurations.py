"""The configurations of a confirmation: the trials that rules choose, and plain fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from trainers.errors import ConfigError, did_you_mean
from tuning.confirmation.results import (
    FT,
    Configuration,
    Confirmation,
    confirm_history,
    failures_of,
    results_of,
)
from tuning.runs.ranking import misses, ranked
from tuning.runs.records import ParamValue, SearchRecord, TrialRecord
from tuning.selection.beliefs import MIN_TRIALS
from tuning.selection.rules import BY_METHOD, EXPECTED, OBJECTIVE, PARETO, RULES, choices


def chosen(
    search: SearchRecord, records: Sequence[TrialRecord], top: int = 1, rules: Sequence[str] = ()
) -> tuple[Configuration, ...]:
    """The finished trials to confirm, without repetitions, each with all the rules that chose it.

    Raises:
        ConfigError: there is none, no such rule, or `top` is not positive or of no rule's use.
    """
    for rule in rules:
        if rule not in RULES:
            hint = did_you_mean(rule, RULES)
            raise ConfigError(f"no such rule{hint}", key="--rule", value=rule)
    if top < 1:
        raise ConfigError("must be at least 1", key="--top", value=top)
    wanted = set(rules) or RULES.keys() - {PARETO}
    if top > 1 and OBJECTIVE not in wanted:
        hint = f"add --rule {OBJECTIVE}, or leave --top out"
        raise ConfigError(f"is only for the rule {OBJECTIVE}", key="--top", value=top, hint=hint)
    found: dict[str, Configuration] = {}

    def add(rule: str, label: str, trial: TrialRecord, looks_at_ood: bool) -> None:
        if rule not in wanted or trial.outcome != "finished":
            return
        method = search.method(trial)
        rivals = [r for r in records if rule != BY_METHOD or search.method(r) == method]
        missed = misses(search, rivals)[trial.trial_id]
        new = Configuration(trial.trial_id, trial.params, method=method, misses=bool(missed))
        earlier = found.get(trial.trial_id, new)
        found[trial.trial_id] = replace(
            earlier,
            labels=(*earlier.labels, label),
            looks_at_ood=earlier.looks_at_ood or looks_at_ood,
            best_of_method=earlier.best_of_method or rule == BY_METHOD,
        )

    ranking = [trial for trial in ranked(search, records) if search.values(trial) is not None]
    for rank, trial in enumerate(ranking[:top], 1):
        add(OBJECTIVE, f"{OBJECTIVE} #{rank}", trial, search.sees_ood)
    others = [choice for choice in choices(search, records) if choice.rule != OBJECTIVE]
    for choice in others:
        parts = {**choice.by_domain, **choice.by_method}
        for trial in choice.trials:
            # The label has the methods, or the domains unless the trial was chosen for all.
            names = [name for name, one in parts.items() if one.trial_id == trial.trial_id]
            named = choice.by_method or 0 < len(names) < len(parts)
            label = f"{choice.rule}/{'+'.join(names)}" if named else choice.rule
            add(choice.rule, label, trial, choice.looks_at_ood)
    finished = [r for r in records if r.kind == "trial" and r.outcome == "finished"]
    if not found and rules and finished:
        reasons = {
            BY_METHOD: "all trials of this search have the same method",
            EXPECTED: "it needs one objective, one method, numbers as hyperparameters, and at "
            f"least {MIN_TRIALS} finished trials",
        }
        reasons |= {choice.rule: choice.reason for choice in others if choice.reason}
        problems = [
            f"{rule}: {reasons.get(rule, 'no finished trial has the metrics that it needs')}"
            for rule in dict.fromkeys(rules)
        ]
        problem = f"no rule chooses a trial. {'; '.join(problems)}"
        raise ConfigError(problem, key="--rule", value=", ".join(rules))
    if not found:
        raise ConfigError("no finished trial to confirm", source=search.run_folder)
    return tuple(found.values())


def read_confirmation(search: SearchRecord, records: Sequence[TrialRecord]) -> Confirmation | None:
    """The results of all calls so far, with every seed; None before the first.

    The rules of these calls are applied to the trials of today. Trials with results that they chose
    at the time, but do not choose any more, come last, with the rules that chose them.

    Raises:
        ConfigError: the results are damaged.
    """
    history = confirm_history(search.run_folder)
    results = results_of(history)
    if not results:
        return None
    stored: dict[str, dict[str, None]] = {}
    params: dict[str, Mapping[str, ParamValue]] = {}
    for (trial_id, seed), result in results.items():
        if seed is not None and trial_id != FT:
            stored.setdefault(trial_id, {}).update(dict.fromkeys(result.labels))
            params[trial_id] = {k: v for k, v in result.params.items() if k != "seed"}
    # Labels are `objective #1`, `leave_one_domain_out/sketch+clipart`, `id_val`, ...
    rules, top = dict[str, None](), 1
    for label in (label for labels in stored.values() for label in labels):
        rule, _, rank = label.partition("/")[0].partition(" #")
        rules[rule] = None
        top = max(top, int(rank or 1))
    today: tuple[Configuration, ...] = ()
    if rules:
        with suppress(ConfigError):  # there is nothing to choose any more
            today = chosen(search, records, top, tuple(rules))
    configurations = [Configuration(FT, {}, method=FT)]
    configurations += [one for one in today if one.trial_id in stored]
    looks_at_ood = {choice.rule: choice.looks_at_ood for choice in choices(search, records)}
    methods = {record.trial_id: search.method(record) for record in records}
    missed = misses(search, records)
    for name, labels in stored.items():
        if name not in {one.trial_id for one in today}:
            by = {label.partition("/")[0].partition(" ")[0] for label in labels}
            sees_ood = any(looks_at_ood.get(rule, False) for rule in by)
            method, short = methods.get(name), bool(missed.get(name))
            configurations.append(
                Configuration(name, params[name], tuple(labels), sees_ood, method, misses=short)
            )
    seeds = sorted({seed for _, seed in results if seed is not None})
    failed = {key: attempts[-1].error_line for key, attempts in failures_of(history).items()}
    return Confirmation(search, tuple(seeds), tuple(configurations), results, failed)
