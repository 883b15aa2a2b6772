"""Means of weights: of several fine-tunings of one zero-shot model, and what they are worth.

- The greedy soup, recipe 1 of Wortsman et al., "Model soups: averaging weights of multiple
  fine-tuned models improves accuracy without increasing inference time", ICML 2022 (arXiv
  2203.05482): from the best fine-tuning to the worst, those with which the mean becomes better on
  held-out images.
- The mean of the ends of trainings that differ in their seeds, and a point of its line.

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

from trainers.checkpoints.format import Header, Progress, load_weights, whole_header
from trainers.checkpoints.storage import fetched, newest_checkpoint, write_weights
from trainers.config import TrialConfig
from trainers.data.store import Store, open_store
from trainers.errors import ConfigError, validate
from trainers.loop.evaluate_run import go_to_line, holding, measure
from trainers.loop.state import TrainState, load_split, start
from trainers.models.averaging import interpolate

Merit: TypeAlias = Callable[[Mapping[str, float]], Any]
"""Of metrics of the validation splits, something that is greater for a better model."""
SEED = "seed"
"""In a report beside a sum of ends: the seed of the training."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made of stored weights."""

    config: TrialConfig
    """See `evaluation_config`."""
    folders: tuple[str, ...] = ()
    """Checkpoints that are added up; none for the zero-shot model."""
    trainings: int = 1
    """The sum is divided by it."""
    point: float | None = None
    """Of the line from the zero-shot weights to the mean; None for the mean itself."""


class Soup(NamedTuple):
    """A greedy soup."""

    used: tuple[int, ...]
    """Indices of its ingredients."""
    metrics: Mapping[str, float]
    """Of the validation splits."""


class OnLine(NamedTuple):
    """A mean of ends, at the point of its line that was taken."""

    point: float | None
    """None for the end, without a line or because no point was better."""
    metrics: Mapping[str, float]
    """Of the validation splits."""


def evaluation_config(config: TrialConfig, *, trains_text: bool) -> TrialConfig:
    """What an evaluation of merged weights depends on; equal for weights that can be averaged.

    Model, data, precision, and how a point of the line is chosen. The method is `flyp` if the text
    encoder trained, else `ft`: all of their tensors train.
    """
    kept = {"model", "data", "precision", "zero_shot_cache_gb"}
    values = config.model_dump(mode="json", include=kept)
    for key in ("crop_area", "crop_law", "flip", "augment"):  # of training views
        del values["data"][key]
    line = {"line", "line_images", "line_goal", "batch_size"}
    values["eval"] = config.eval.model_dump(mode="json", include=line)
    if not config.method.has_line:
        values["eval"]["line"] = "off"
    values["method"] = {"name": "flyp" if trains_text else "ft"}
    return validate(TrialConfig, values, "evaluation")


def add_ends(
    total: str, ends: Sequence[tuple[int, str]], device: torch.device | None = None
) -> tuple[int, ...]:
    """Add the weights at the ends of trainings to their sum in a folder, in the order given.

    Those whose seed is part of it already are left out, so that a second call changes nothing.

    Args:
        total: folder of the sum, which may be missing yet.
        ends: seed and folder of each.
        device: not used; a function that runs where trials do is given one.

    Returns:
        The seeds of the sum, in the order in which they were added.
    """
    folder = open_store(total)
    weights: dict[str, Tensor] = {}
    class_names: tuple[str, ...] = ()
    reports: list[dict[str, float]] = []
    if (earlier := newest_checkpoint(folder)) is not None:
        header = whole_header(folder.at(earlier))
        class_names = header.class_names
        reports = header.reports
    seeds = [int(report[SEED]) for report in reports]
    new = [(seed, end) for seed, end in ends if seed not in seeds]
    if not new:
        return tuple(seeds)
    if earlier is not None:
        with fetched(folder.at(earlier)) as local:
            weights, _ = load_weights(local)
    for seed, end in new:
        checkpoint = _newest(open_store(end))
        header = whole_header(checkpoint)
        with fetched(checkpoint) as local:
            _add(weights, load_weights(local)[0], end)
        if class_names and header.class_names != class_names:
            raise ConfigError("trained on other classes than the others", source=end)
        class_names = header.class_names
        reports = [*reports, {**header.reports[-1], SEED: seed}]
    write_weights(folder, weights, Header(Progress(len(reports)), class_names, reports))
    return (*seeds, *(seed for seed, _ in new))


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
    for index in range(1, len(folders)):
        used = (*soup.used, index)
        _load(run, _mean([folders[i] for i in used], len(used)))
        with holding(run, run.weights):
            metrics = measure(run, "val", images)
        if merit(metrics) > merit(soup.metrics):
            soup = Soup(used, metrics)
    return soup


def mean_of_ends(
    config: TrialConfig,
    total: str,
    merit: Merit,
    device: torch.device | str | None = None,
) -> OnLine:
    """Evaluate the mean of ends, and a point of its line.

    The point is proposed on a sample, as in a training. It is taken if it is better than the end,
    on all images; a fixed `eval.line` is taken as it is. `total` is the folder of the sum.
    """
    run, images = start(config, device=device), load_split(config, "val")
    number = len(whole_header(_newest(open_store(total))).reports)
    _load(run, _mean([total], number))
    sample = {domain: i.sampled(config.eval.line_images) for domain, i in images.items()}
    point = go_to_line(run, sample).get("line/a", 1.0)
    found = []
    if point == 1 or config.eval.line_points:
        with holding(run, run.weights):
            found.append(OnLine(None, measure(run, "val", images)))
    if point != 1:
        with holding(run, run.eval_weights or run.weights):
            found.append(OnLine(point, measure(run, "val", images)))
    return max(found, key=lambda one: merit(one.metrics))  # the end, if they are equal


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
    if recipe.folders:
        _load(run, _mean(recipe.folders, recipe.trainings))
    weights = run.weights
    if recipe.point is not None:
        weights = interpolate(run.initial, weights, recipe.point)
    with holding(run, weights):
        report = {"step": 0.0, **metrics}
        header = Header(Progress(), tuple(run.class_names), [report])
        write_weights(open_store(target), run.student.plain_state(), header)
        found = measure(run, split, load_split(recipe.config, split), keep_predictions=True)
    assert run.predictions is not None
    return found, run.predictions


def _newest(folder: Store) -> Store:
    """The weights in a folder: those of its newest checkpoint, or its own."""
    newest = newest_checkpoint(folder)
    return folder if newest is None else folder.at(newest)


def _mean(folders: Sequence[str], number: int) -> dict[str, Tensor]:
    """The sum of checkpoints, divided by a number, in float32; of one, its own weights."""
    total: dict[str, Tensor] = {}
    for folder in folders:
        with fetched(_newest(open_store(folder))) as local:
            _add(total, load_weights(local)[0], folder)
    return {n: (v / number).float() if v.is_floating_point() else v for n, v in total.items()}


def _add(total: dict[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Add weights to a sum in float64; counts of batches are the same in all of them."""
    if total and {n: v.shape for n, v in total.items()} != {n: v.shape for n, v in weights.items()}:
        raise ConfigError("other tensors than those of the others", source=source)
    for name, value in weights.items():
        if not value.is_floating_point():
            total[name] = value
        elif name in total:
            total[name] += value
        else:
            total[name] = value.double()


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
