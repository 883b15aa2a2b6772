"""The weights that can be exported: of a trial, a soup, or `lipsum-tune train`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers.checkpoints.format import saved_step, whole_header
from trainers.config import DataConfig, TrialConfig
from trainers.data.data_root import domain_files, resolve_root
from trainers.data.schema import read_header
from trainers.data.storage import Store, open_store
from trainers.data.transforms import CROP_PCT
from trainers.errors import ConfigError, did_you_mean, validate
from trainers.evaluation.metrics import MetricKey
from trainers.yaml_text import read_yaml
from tuning.checkpoints.files import kept_checkpoint
from tuning.runs.run_folder import CONFIG_FILE, LoadedRun, config_of, load_run
from tuning.selection.ranking import best_trial, choice_of

TRIAL_FILE = "trial.yaml"
"""Configuration, beside the checkpoint of `lipsum-tune train`."""
SOUPS_FOLDER, SOUP_FILE = "soups", "soup.json"
SPLIT = "val"
"""The only split that a search evaluates."""


@dataclass(frozen=True)
class Source:
    """Weights and their origin."""

    title: str
    """Such as `quickstart, trial-007`."""
    checkpoint: Store
    """Folder of the weights."""
    trial: TrialConfig
    """The configuration of the training; for a soup, of its first ingredient."""
    origin: Mapping[str, Any]
    """Plain values: run, trial or soup, method, params, and how the weights were chosen."""
    metrics: Mapping[str, float]
    """The last report, on validation splits; accuracies in percent."""


def find_source(folder: Path, trial: str | None = None, soup: str | None = None) -> Source:
    """Find the weights that a user names.

    Args:
        folder: a run folder, or one that `lipsum-tune train` wrote.
        trial: by default the one that the objective chooses.

    Raises:
        ConfigError: they do not exist or were not kept.
    """
    if not (folder / CONFIG_FILE).is_file() and (folder / TRIAL_FILE).is_file():
        if trial or soup:
            raise ConfigError(
                "holds a single training, without trials or soups",
                key="--trial" if trial else "--soup",
                value=trial or soup,
                source=folder,
            )
        return _of_training(folder)
    run = load_run(folder)
    if soup is None:
        return _of_trial(run, trial)
    if trial is not None:
        raise ConfigError("cannot be used with --soup", key="--trial", value=trial)
    return _of_soup(run, soup)


def write_trial(folder: Path, trial: TrialConfig) -> None:
    """Write the configuration of a training beside its checkpoint."""
    text = yaml.safe_dump(trial.model_dump(mode="json"), sort_keys=False)
    (folder / TRIAL_FILE).write_text(text, encoding="utf-8")


def _of_trial(run: LoadedRun, trial_id: str | None) -> Source:
    search, records = run.search, {r.trial_id: r for r in run.history.records}
    if trial_id is None:
        record = best_trial(search, records.values())
        if record is None:
            raise ConfigError("no trial has a value of the objective yet", source=run.folder)
    elif trial_id in records:
        record = records[trial_id]
    else:
        raise ConfigError(
            "no such trial" + did_you_mean(trial_id, records), key="--trial", value=trial_id
        )
    checkpoints = run.checkpoints
    checkpoint = kept_checkpoint(checkpoints, record.trial_id)
    if checkpoint is None:
        kept = [name for name in records if kept_checkpoint(checkpoints, name) is not None]
        raise ConfigError(
            f"the weights of {record.trial_id} ({record.outcome}) were not kept, only those of "
            f"{', '.join(kept) or 'no trial'}",
            hint="search.checkpoints.keep_top keeps more",
            source=run.folder,
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
        "chosen": choice_of(search, records.values(), record)
        if trial_id is None
        else "Named by hand.",
        "looks_at_ood": search.sees_ood if trial_id is None else None,
    }
    title = f"{search.name}, {record.trial_id}"
    return Source(title, checkpoint, config_of(run.file, record), origin, report)


def _of_soup(run: LoadedRun, name: str) -> Source:
    folder = run.folder / SOUPS_FOLDER / name
    try:
        about = json.loads((folder / SOUP_FILE).read_text(encoding="utf-8"))
        metrics, first_trial = about.pop("metrics"), about["trials"][0]
    except FileNotFoundError:
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{SOUP_FILE}"))
        raise ConfigError(
            "no such soup" + did_you_mean(name, known),
            key="--soup",
            value=name,
            hint=f"make it with `lipsum-tune soup {run.folder} --name {name}`",
            source=run.folder,
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        hint = f"make it again with `lipsum-tune soup {run.folder} --name {name}`"
        raise ConfigError("damaged", source=folder / SOUP_FILE, hint=hint) from None
    first = next(r for r in run.history.records if r.trial_id == first_trial)
    title = f"{run.folder.name}, {name} soup"
    return Source(title, open_store(folder), config_of(run.file, first), about, metrics)


def _of_training(folder: Path) -> Source:
    path, name, header = folder / TRIAL_FILE, folder.resolve().name, whole_header(folder)
    trial = validate(TrialConfig, read_yaml(path), str(path))
    origin = {"run": name, "method": trial.method.name, "step": header.step}
    return Source(name, open_store(folder), trial, origin, header.metrics)


def evaluation_crops(data: DataConfig) -> dict[str, float]:
    """`crop_pct` of each domain: as configured, else as recorded in its data, else the default.

    The default is also taken if the data cannot be read any more.
    """
    crops = dict.fromkeys(data.domains, data.crop_pct or CROP_PCT)
    if data.crop_pct is None:
        with suppress(ConfigError, OSError):
            store = resolve_root(data.root)
            for domain in data.domains:
                header = read_header(store, domain_files(store, domain, SPLIT)[0])
                crops[domain] = float(header.metadata.get("crop_pct", CROP_PCT))
    return crops


def measured(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the validation splits."""
    keys = {name: MetricKey.parse(name) for name in metrics}
    return {n: value for n, value in metrics.items() if (k := keys[n]) and k.split == SPLIT}
