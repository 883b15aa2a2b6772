"""Weights that a search or `lipsum-tune train` left somewhere, with all that is known of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers.checkpoints.format import WEIGHTS, saved_metrics, saved_step
from trainers.config import TrialConfig
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, did_you_mean, validate
from tuning.checkpoints.files import kept_checkpoint
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import CONFIG_FILE, LoadedRun, load_run
from tuning.selection.rules import best_trial

TRIAL_FILE = "trial.yaml"
"""Beside the checkpoint of `lipsum-tune train`: its configuration."""
SOUPS_FOLDER, SOUP_FILE = "soups", "soup.json"
SPLIT = "val"
"""Of all figures that a search may know."""
_MEASURED = (f"id_{SPLIT}/", f"ood_{SPLIT}/", f"{SPLIT}/")


@dataclass(frozen=True)
class Source:
    """Weights, wherever they lie."""

    title: str
    """For people, such as `quickstart, trial-007`."""
    checkpoint: Store
    """Its folder."""
    trial: TrialConfig
    """With what they were trained; of a soup, its first ingredient."""
    origin: Mapping[str, Any]
    """Plain values: run, trial or soup, method, params, and how they were chosen."""
    metrics: Mapping[str, float]
    """At the end of training; on validation splits, in percent where they are accuracies."""


def find_source(folder: Path, trial: str | None = None, soup: str | None = None) -> Source:
    """The weights that a user means.

    Args:
        folder: a run folder, or one that `lipsum-tune train` wrote.
        trial: of the run; by default the one that its objective chooses.
        soup: of the run, in the trial's place.

    Raises:
        ConfigError: they are not there; the message says why, or what is.
    """
    if not (folder / CONFIG_FILE).is_file() and (folder / TRIAL_FILE).is_file():
        if trial or soup:
            raise ConfigError(f"{folder}: a single training, with neither trials nor soups")
        return _of_training(folder)
    run = load_run(folder)
    if soup is None:
        return _of_trial(run, trial)
    if trial is not None:
        raise ConfigError("--trial and --soup: name one of them")
    return _of_soup(run, soup)


def write_trial(folder: Path, trial: TrialConfig) -> None:
    """Leave word in a folder of what its checkpoint was trained with."""
    text = yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False)
    (folder / TRIAL_FILE).write_text(text, encoding="utf-8")


def config_of(run: LoadedRun, record: TrialRecord) -> TrialConfig:
    """What a trial or reference was trained with."""
    if record.kind == "reference":
        return run.file.reference_config(record.trial_id)
    return run.file.trial_config(record.params)


def _of_trial(run: LoadedRun, trial_id: str | None) -> Source:
    search, records = run.search, {r.trial_id: r for r in run.history.records}
    if trial_id is None:
        record = best_trial(search, records.values())
        if record is None:
            raise ConfigError(f"{run.folder}: no trial has a value of the objective yet")
    elif trial_id in records:
        record = records[trial_id]
    else:
        raise ConfigError(f"--trial {trial_id!r}: no such trial{did_you_mean(trial_id, records)}")
    checkpoints = run.checkpoints
    checkpoint = kept_checkpoint(checkpoints, record.trial_id)
    if checkpoint is None:
        kept = [name for name in records if kept_checkpoint(checkpoints, name) is not None]
        raise ConfigError(
            f"{run.folder}: the weights of {record.trial_id} ({record.outcome}) are not kept, "
            f"those of {', '.join(kept) or 'no trial'} are; search.checkpoints.keep_top keeps more"
        )
    step = saved_step(checkpoint)
    report = next((point for point in record.curve if point["step"] == step), {})
    origin = {
        "run": search.name,
        "trial": record.trial_id,
        "method": search.method(record),
        "params": dict(record.params),
        "outcome": record.outcome,
        "step": step,
        "chosen": search.selection if trial_id is None else "Named by hand.",
        "looks_at_ood": search.sees_ood if trial_id is None else None,
    }
    title = f"{search.name}, {record.trial_id}"
    return Source(title, checkpoint, config_of(run, record), origin, report)


def _of_soup(run: LoadedRun, name: str) -> Source:
    folder = run.folder / SOUPS_FOLDER / name
    try:
        about = json.loads((folder / SOUP_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{SOUP_FILE}"))
        hint = did_you_mean(name, known) if known else ""
        raise ConfigError(
            f"--soup {name!r}: there is none in {run.folder}{hint}; "
            f"make it with `lipsum-tune soup {run.folder} --name {name}`"
        ) from None
    metrics = about.pop("metrics")
    first = next(r for r in run.history.records if r.trial_id == about["trials"][0])
    title = f"{run.folder.name}, {name} soup"
    return Source(title, open_store(folder), config_of(run, first), about, metrics)


def _of_training(folder: Path) -> Source:
    path = folder / TRIAL_FILE
    step, name = saved_step(folder), folder.resolve().name
    if step is None:
        raise ConfigError(f"{folder}: no whole {WEIGHTS}")
    trial = validate(TrialConfig, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    origin = {"run": name, "method": trial.method.name, "step": step}
    return Source(name, open_store(folder), trial, origin, saved_metrics(folder))


def measured(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of a report, the figures of the validation splits."""
    return {name: value for name, value in metrics.items() if name.startswith(_MEASURED)}
