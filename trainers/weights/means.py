"""Means of weights: of several fine-tunings of one zero-shot model, and what they are worth.

The greedy soup is recipe 1 of Wortsman et al., "Model soups: averaging weights of multiple
fine-tuned models improves accuracy without increasing inference time", ICML 2022 (arXiv
2203.05482): from the best fine-tuning to the worst, those with which the mean becomes better on
held-out images.

Sums are float64 and in a fixed order, so that they are the same whenever they are made again. A
head that a text encoder makes is not averaged but made again by the text encoder of the mean.
Folders are passed as paths or URLs, since these functions run in other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from trainers.checkpoints.format import Header, Progress, load_weights
from trainers.checkpoints.storage import fetched, write_weights
from trainers.config import TrialConfig
from trainers.data.store import open_store
from trainers.errors import ConfigError, validate
from trainers.loop.evaluate_run import holding, measure
from trainers.loop.state import TrainState, load_split, start

Merit: TypeAlias = Callable[[Mapping[str, float]], Any]
"""Of metrics of the validation splits, something that is greater for a better model."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made of stored weights."""

    config: TrialConfig
    """See `evaluation_config`."""
    folders: tuple[str, ...] = ()
    """Checkpoints whose mean it is; none for the zero-shot model."""


class Soup(NamedTuple):
    """A greedy soup."""

    used: tuple[int, ...]
    """Indices of its ingredients."""
    metrics: Mapping[str, float]
    """Of the validation splits."""


def evaluation_config(config: TrialConfig, *, trains_text: bool) -> TrialConfig:
    """What an evaluation of merged weights depends on; equal for weights that can be averaged.

    Model, data, precision and batch. The method is `flyp` if the text encoder trained, else `ft`:
    all of their tensors train.
    """
    kept = {"model", "data", "precision", "zero_shot_cache_gb"}
    values = config.model_dump(mode="json", include=kept)
    for key in ("crop_area", "crop_law", "flip", "augment"):  # of training views
        del values["data"][key]
    values["eval"] = {"batch_size": config.eval.batch_size, "line": "off"}
    values["method"] = {"name": "flyp" if trains_text else "ft"}
    return validate(TrialConfig, values, "evaluation")


def greedy_soup(
    config: TrialConfig,
    folders: Sequence[str],
    first: Mapping[str, float],
    merit: Merit,
    device: torch.device | str | None = None,
) -> Soup:
    """Average checkpoints, each only if the mean becomes better with it.

    `folders` are of checkpoints with the same tensors, the best first; `first` are its metrics.
    """
    run, images = start(config, device=device), load_split(config, "val")
    soup = Soup((0,), first)
    total = _added({}, folders[0])
    for index in range(1, len(folders)):
        used = (*soup.used, index)
        larger = _added(total, folders[index])
        _load(run, _mean(larger, len(used)))
        with holding(run, run.weights):
            metrics = measure(run, "val", images)
        if merit(metrics) > merit(soup.metrics):
            soup = Soup(used, metrics)
            total = larger
    return soup


def make_and_test(
    recipe: Recipe,
    target: str,
    metrics: Mapping[str, float],
    split: str,
    device: torch.device | str | None = None,
) -> tuple[dict[str, float], bytes]:
    """Write a model into a folder, then evaluate it on a split.

    `metrics` of the validation splits become its report. Returned are those of the split, and the
    predictions on it as a Parquet file.
    """
    run = start(recipe.config, device=device)
    total: dict[str, Tensor] = {}
    for folder in recipe.folders:
        total = _added(total, folder)
    if total:
        _load(run, _mean(total, len(recipe.folders)))
    with holding(run, run.weights):
        report = {"step": 0.0, **metrics}
        header = Header(Progress(), tuple(run.class_names), [report])
        write_weights(open_store(target), run.student.plain_state(), header)
        found = measure(run, split, load_split(recipe.config, split), keep_predictions=True)
    assert run.predictions is not None
    return found, run.predictions


def _added(total: Mapping[str, Tensor], folder: str) -> dict[str, Tensor]:
    """A sum, and the weights of one more checkpoint, in float64.

    Counts of batches are the same in all checkpoints, and are not added.
    """
    with fetched(open_store(folder)) as local:
        weights, _ = load_weights(local)
    if total and {n: v.shape for n, v in total.items()} != {n: v.shape for n, v in weights.items()}:
        raise ConfigError("other tensors than those of the others", source=folder)
    return {
        name: value.double() + total.get(name, 0.0) if value.is_floating_point() else value
        for name, value in weights.items()
    }


def _mean(total: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The mean of so many checkpoints in float32."""
    return {n: (v / count).float() if v.is_floating_point() else v for n, v in total.items()}


@torch.no_grad()
def _load(run: TrainState, weights: Mapping[str, Tensor]) -> None:
    """Load merged weights into the run's student."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}

    student = run.student
    student.visual.load_state_dict(below("visual."))
    if student.text is None:
        student.head.copy_(weights["head"])
    else:
        student.text.clip.load_state_dict(below("text."))
