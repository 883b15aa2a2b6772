"""Model soups: the mean of the weights of several fine-tunings that began at one model.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022 (arXiv 2203.05482). `uniform` averages all of them.
`greedy` (their Recipe 1) goes from the most accurate one to the least, and leaves out whatever
lowers the accuracy of the soup on held-out images: here those of the ID validation split.

A head that a text encoder makes is not averaged but made anew by the averaged text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from trainers.checkpoints.format import Progress, load_weights, save_weights, saved_shapes
from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.errors import ConfigError
from trainers.evaluation.offline import TEXT, evaluator, hold
from trainers.loop.state import TrainState, load_split

Recipe: TypeAlias = Literal["uniform", "greedy"]

ID_ACC = "id_val/acc"


@dataclass(frozen=True)
class Taste:
    """What `greedy` found of a soup with one more ingredient."""

    ingredient: int
    id_acc: float
    """Of the soup with it, percent."""
    kept: bool


@dataclass(frozen=True)
class Soup:
    """What was made of some ingredients, which are numbered in the order they were given."""

    used: tuple[int, ...]
    metrics: Mapping[str, float]
    """Of the validation splits, as a trial reports them."""
    tastes: tuple[Taste, ...] = ()
    """Of `greedy`, in its order."""


def cook(
    config: TrialConfig,
    ingredients: Sequence[Path],
    recipe: Recipe,
    destination: Path,
    *,
    device: torch.device | str | None = None,
) -> Soup:
    """Make a soup, measure it on the validation splits, and write it as a checkpoint.

    Args:
        config: model, data and evaluation; what it says of training does not matter.
        ingredients: folders of checkpoints, the most accurate first.
        recipe: what goes into it.
        destination: a new folder.
        device: where it is evaluated; by default a GPU if there is one.

    Raises:
        ConfigError: ingredients that differ in more than values, or that were trained on other
            classes than the data have now.
    """
    check_ingredients(ingredients)
    shapes, class_names = saved_shapes(ingredients[0])
    run = evaluator(config, any(n.startswith(TEXT) for n in shapes), device)
    if run.class_names != class_names:
        raise ConfigError(f"{ingredients[0]}: trained on other classes than the data have now")
    images = load_split(config, "val")
    everything = tuple(range(len(ingredients)))
    tastes: tuple[Taste, ...] = ()
    if recipe == "greedy":
        tastes = greedy(everything, lambda some: _id_acc(run, images, _pick(ingredients, some)))
    used = tuple(t.ingredient for t in tastes if t.kept) or everything
    hold(run, average(_pick(ingredients, used)))
    with run.holding(run.weights):
        metrics = run.measure("val", images, None)
    weights = {name: value.cpu() for name, value in run.student.plain_state().items()}
    save_weights(destination, weights, Progress(step=config.steps), class_names)
    return Soup(used, metrics, tastes)


def greedy(
    ingredients: Sequence[int], id_acc: Callable[[Sequence[int]], float]
) -> tuple[Taste, ...]:
    """Which ingredients go into a greedy soup: those that do not lower its accuracy.

    Args:
        ingredients: the most accurate first, which goes into it in any case.
        id_acc: of the soup of some of them, on held-out images.
    """
    tastes: list[Taste] = []
    used: tuple[int, ...] = ()
    best = float("-inf")
    for ingredient in ingredients:
        found = id_acc((*used, ingredient))
        kept = not used or found >= best
        if kept:
            used, best = (*used, ingredient), found
        tastes.append(Taste(ingredient, found, kept))
    return tuple(tastes)


def average(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the checkpoints' weights; one in memory at a time, besides their sum."""
    total, _ = load_weights(folders[0])
    for folder in folders[1:]:
        for name, value in load_weights(folder)[0].items():
            if value.is_floating_point():  # and no count of batches, which is the same in all
                total[name] += value
    return {n: v / len(folders) if v.is_floating_point() else v for n, v in total.items()}


def check_ingredients(folders: Sequence[Path]) -> None:
    """Raise a `ConfigError` unless all checkpoints have the same tensors and classes."""
    first, class_names = saved_shapes(folders[0])
    for folder in folders[1:]:
        shapes, names = saved_shapes(folder)
        if names != class_names:
            raise ConfigError(f"{folder}: trained on other classes than {folders[0]}")
        if shapes != first:
            odd = sorted({*shapes.items()} ^ {*first.items()})[0][0]
            raise ConfigError(
                f"{folder}: it cannot be averaged with {folders[0]}: {odd!r} is not in both, or of "
                "another shape"
            )


def _pick(folders: Sequence[Path], indices: Sequence[int]) -> list[Path]:
    return [folders[index] for index in indices]


def _id_acc(
    run: TrainState, images: Mapping[str, ImageDataset], ingredients: Sequence[Path]
) -> float:
    """Of the mean of some checkpoints; the OOD domains are not looked at."""
    id_domain = run.config.data.id_domain
    hold(run, average(ingredients))
    with run.holding(run.weights):
        return run.measure("val", {id_domain: images[id_domain]}, None)[ID_ACC]
