"""The weights that can be exported: of a model, a trial, zero-shot, or `lipsum-tune train`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from trainers.checkpoints.format import saved_step, whole_header
from trainers.checkpoints.storage import newest_checkpoint
from trainers.config import TrialConfig
from trainers.data.store import Store, open_store
from trainers.errors import ConfigError, did_you_mean, listed, validate
from trainers.evaluation.metrics import ID, MetricKey
from trainers.yaml_text import read_yaml
from tuning.checkpoints import kept_checkpoint
from tuning.config.recorded import drop_unknown
from tuning.log.folder import config_of
from tuning.log.paths import CONFIG_FILE
from tuning.log.records import METHOD_KEY, UNTUNED, ZERO_SHOT
from tuning.results.estimates import FT, Confirmation
from tuning.results.estimates import SPLIT as TEST
from tuning.results.model import (
    Finding,
    findings,
    findings_by_rule,
    made_of,
    model_folder,
    model_in_words,
)
from tuning.results.ranking import best_trial
from tuning.results.rules import ID_VAL
from tuning.results.words import chosen_on, readings_in_words
from tuning.run import Run, load_run

logger = logging.getLogger(__name__)

TRIAL_FILE = "trial.yaml"
"""Configuration, beside the checkpoint of `lipsum-tune train`."""
THIS = "this model"
"""Label of a model's own test accuracies."""
NOT_TESTED = "Not tested: `lipsum-tune confirm` builds a model and tests it."
SPLIT = "val"
"""The only split that a search evaluates."""


@dataclass(frozen=True)
class Source:
    """Weights and their origin."""

    title: str
    """Such as `quickstart, trial-007`."""
    checkpoint: Store
    """Weights, and the class names of their head."""
    trial: TrialConfig
    """The configuration of the training."""
    origin: Mapping[str, Any]
    """Plain values: run, trial, method, params, and how the weights were chosen."""
    metrics: Mapping[str, float]
    """The last report, on validation splits; accuracies in percent."""
    alpha: float | None = None
    """0 for the zero-shot model: the point of WiSE-FT that is exported. None: the weights."""
    test: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of a model, what `confirm` measured of it and beside it: label -> `metrics` and `margins`,
    of several trainings their number as `seeds` and their means."""


def find_source(folder: Path, trial: str | None = None, rule: str | None = None) -> Source:
    """Find the weights that a user names.

    Args:
        folder: a run folder, or one that `lipsum-tune train` wrote.
        trial: `ft` and `zero-shot` included. By default the model that `confirm` has tested, and
            before that the single training that the conclusion names.
        rule: `id_val`, for the model that this rule has chosen beside it.
    """
    if rule is not None and (rule != ID_VAL or trial is not None):
        raise ConfigError(f"only {ID_VAL}, and not with --trial", key="--rule", value=rule)
    if (folder / CONFIG_FILE).is_file() or not (folder / TRIAL_FILE).is_file():
        run = load_run(folder)
        again = run.settings
        if trial is not None:
            said = readings_in_words(again.readings) if again and again.readings else ""
            return _of_trial(run, trial, f"Named by hand. {said}".rstrip())
        if again is not None and run.models:
            return _of_model(run, again, rule)
        if rule is not None:
            problem, hint = (
                "no such model was tested",
                f"`lipsum-tune confirm {run.name}` builds it",
            )
            raise ConfigError(problem, key="--rule", value=rule, hint=hint)
        return _of_winner(run)
    if trial is not None or rule is not None:
        raise ConfigError("is for runs, not for one training", key="--trial", value=trial)
    header = whole_header(folder)
    values = read_yaml(folder / TRIAL_FILE)
    if unknown := drop_unknown(TrialConfig, values):
        logger.warning("%s: skipped, not known to this version: %s", folder, listed(unknown))
    config = validate(TrialConfig, values, str(folder / TRIAL_FILE))
    name = folder.resolve().name
    origin = {"run": name, "method": config.method.name, "step": header.step}
    return Source(name, open_store(folder), config, origin, header.metrics)


def write_trial(folder: Path, trial: TrialConfig) -> None:
    """Write the configuration of a training beside its checkpoint."""
    text = yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False)
    (folder / TRIAL_FILE).write_text(text, encoding="utf-8")


def _of_model(run: Run, again: Confirmation, rule: str | None = None) -> Source:
    """The model that `confirm` has built and tested last, or the one of a rule beside it."""
    *earlier, model = run.models
    why = why_chosen(run)
    found = findings(again, model)[0]
    others = {one.title: _tested(one) for one in findings_by_rule(again, model)}
    if rule is not None:
        beside = [one for one in model.by_rule if one.rule == rule]
        if not beside:
            problem = "the model was built without it"
            raise ConfigError(problem, key="--rule", value=rule, source=run.folder)
        (of_rule,) = beside
        found, *_ = findings_by_rule(again, model)
        others = {f"the model, {made_of(model)}": _tested(findings(again, model)[0])}
        model = replace(model, chosen=of_rule.chosen, test=of_rule.test)
        why = f"{found.title[0].upper()}{found.title[1:]}: {made_of(model)}."
        if again.readings:
            why += f" {readings_in_words(again.readings)}"
    one = model.chosen
    test: dict[str, dict[str, Any]] = {
        THIS: _tested(found) | {"metrics": measured(model.test, TEST)}
    }
    test |= others
    for number, before in enumerate(earlier, 1):
        test[f"model {number}, built earlier"] = {"metrics": measured(before.test, TEST)}
    test[ZERO_SHOT] = {"metrics": measured(again.zero_shot, TEST)}
    ft = {name: value for name, value in again.means(FT).items() if name in model.test}
    if ft:
        seeds = len(again.values(FT, str(MetricKey(TEST, ID, "acc"))))
        test[UNTUNED] = {"seeds": seeds, "metrics": measured(ft, TEST)}
    origin = {
        "run": run.name,
        "made_of": made_of(model),
        "method": ", ".join(dict.fromkeys(str(t["method"]) for t in one.trainings)) or None,
        "trainings": [dict(training) for training in one.trainings],
        "chosen": why,
    }
    config = run.file.trial
    if one.trainings:
        first = one.trainings[0]
        own = {METHOD_KEY: first["method"], **first["params"], "seed": first["seed"]}
        config = run.file.trial_config(own)
    folder = model_folder(run, model.number, rule or "")
    newest = newest_checkpoint(folder)
    if newest is None:
        problem = "the weights of the model are gone"
        hint = "`lipsum-tune confirm --again` builds it anew; --trial names other weights"
        raise ConfigError(problem, source=folder.url, hint=hint)
    alpha = None if one.trainings else 0.0
    title = f"{run.name}, the model{f' by {rule}' if rule else ''}"
    return Source(title, folder.at(newest), config, origin, {}, alpha, test)


def _tested(found: Finding) -> dict[str, Any]:
    """Accuracies and their margins, as a card has them."""
    accs = found.values
    margins = {m: acc.high - acc.mean for m, acc in accs.items() if not math.isnan(acc.high)}
    return {"metrics": {m: acc.mean for m, acc in accs.items()}, "margins": margins}


def why_chosen(run: Run) -> str:
    """Sentences on the weights that are exported if none are named: what they are, and why."""
    again = run.settings
    of_model = model_in_words(run)
    if again is not None and of_model is not None:
        lines = [*of_model.lines, f"{chosen_on(run)}."]
        if again.readings:
            lines.append(readings_in_words(again.readings))
        return " ".join(lines)
    why = f"{' '.join(run.conclusion.lines)} {NOT_TESTED}"
    if len(run.goal.objectives) > 1:
        why += " With several objectives there is no model: --trial names other weights."
    return why


def _of_winner(run: Run) -> Source:
    """The single training that the conclusion names, before there is a model."""
    records = run.records
    concluded = run.conclusion
    best = concluded.best or concluded.furthest
    if best is None:
        raise ConfigError("no trial has a value of the objective yet", source=run.folder)
    why = why_chosen(run)
    if best.trial_id == FT and all(record.trial_id != FT for record in records):
        trial = concluded.compared[0]
        hint = f"--trial {trial} exports the best trial; search.references has `ft`"
        problem = f"this search has no weights of the winner. {why}"
        raise ConfigError(problem, source=run.folder, hint=hint)
    return _of_trial(run, best.trial_id, why)


def _of_trial(run: Run, trial_id: str, why: str) -> Source:
    """The weights of a trial or reference, or of the zero-shot model."""
    records = {record.trial_id: record for record in run.records}
    is_zero_shot = trial_id == ZERO_SHOT
    record = records.get(trial_id)
    if is_zero_shot:  # its weights are one end of the line of any trial
        record = best_trial(run.goal, run.records)
    if record is None:
        problem = "no such trial" + did_you_mean(trial_id, records)
        raise ConfigError(problem, key="--trial", value=trial_id)
    checkpoint = kept_checkpoint(run.checkpoints, record.trial_id)
    if checkpoint is None:
        kept = [name for name in records if kept_checkpoint(run.checkpoints, name) is not None]
        problem = f"the weights of {record.trial_id} ({record.outcome}) were not kept, only those "
        problem += f"of {', '.join(kept) or 'no trial'}"
        hint = "--trial names one; in the next search, search.checkpoints.keep_top keeps more"
        raise ConfigError(problem, hint=hint, source=run.folder)
    step = saved_step(checkpoint)
    report = next((point for point in record.curve if point["step"] == step), {})
    origin = {
        "run": run.name,
        "trial": record.trial_id,
        "method": run.method(record),
        "params": run.file.reference_params if record.kind == "reference" else dict(record.params),
        "step": step,
        "chosen": why,
    }
    if is_zero_shot:
        origin |= {"trial": ZERO_SHOT, "method": None, "params": {}, "step": 0}
        report = run.goal.zero_shot
    title = f"{run.name}, {origin['trial']}"
    config = config_of(run.file, record)
    alpha = 0.0 if is_zero_shot else None
    return Source(title, checkpoint, config, origin, report, alpha)


def measured(metrics: Mapping[str, float], split: str = SPLIT) -> dict[str, float]:
    """The metrics of one kind of splits, by default validation."""
    keys = {name: MetricKey.parse(name) for name in metrics}
    return {n: value for n, value in metrics.items() if (k := keys[n]) and k.split == split}
