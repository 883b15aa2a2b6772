"""The configurations of a confirmation: the trials that rules choose, and plain fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainers.errors import ConfigError, did_you_mean
from tuning.confirmation.results import (
    FT,
    REFERENCE,
    Confirmation,
    confirm_history,
    failures_of,
    results_of,
)
from tuning.runs.ranking import ranked
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import BY_METHOD, OBJECTIVE, PARETO, RULES, choices


def chosen(
    search: SearchRecord, records: Sequence[TrialRecord], top: int = 1, rules: Sequence[str] = ()
) -> tuple[TrialRecord, ...]:
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
    found: dict[str, TrialRecord] = {}

    def add(rule: str, label: str, trial: TrialRecord) -> None:
        if rule in wanted and trial.outcome == "finished":
            earlier = found.get(trial.trial_id, trial)
            found[trial.trial_id] = replace(earlier, labels=(*earlier.labels, label))

    ranking = [trial for trial in ranked(search, records) if search.values(trial) is not None]
    for rank, trial in enumerate(ranking[:top], 1):
        add(OBJECTIVE, f"{OBJECTIVE} #{rank}", trial)
    others = [choice for choice in choices(search, records) if choice.rule != OBJECTIVE]
    for choice in others:
        for trial in choice.trials:
            # The label has the methods, or the domains unless the trial was chosen for all.
            names = [key for key, one in choice.parts.items() if one.trial_id == trial.trial_id]
            named = choice.rule == BY_METHOD or 0 < len(names) < len(choice.parts)
            add(choice.rule, f"{choice.rule}/{'+'.join(names)}" if named else choice.rule, trial)
    if found:
        return tuple(found.values())
    if not any(r.kind == "trial" and r.outcome == "finished" for r in records):
        raise ConfigError("no finished trial to confirm", source=search.run_folder)
    reasons = {choice.rule: choice.reason for choice in others if choice.reason}
    reasons.setdefault(BY_METHOD, "all trials of this search have the same method")
    why = [f"{rule}: {reasons.get(rule, 'no trial has its metrics')}" for rule in wanted]
    problem = f"no rule chooses a finished trial. {'; '.join(sorted(why))}"
    raise ConfigError(problem, key="--rule", value=", ".join(rules))


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
