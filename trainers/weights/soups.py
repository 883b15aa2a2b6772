"""Model soups: the mean of the weights of several fine-tunings of one zero-shot model.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022 (arXiv 2203.05482). `uniform` averages all of them.
`greedy` (their Recipe 1) goes from the most accurate one to the least, and leaves out those that
lower the accuracy of the soup on held-out images: here those of the ID validation split.

A head that a text encoder makes is not averaged but made again by the averaged text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from trainers.checkpoints.format import Progress, load_weights, save_weights, whole_header
from trainers.config import TrialConfig
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, validate
from trainers.evaluation.metrics import ID_ACC
from trainers.loop.evaluate_run import holding, measure
from trainers.loop.state import TrainState, load_split, start

Recipe: TypeAlias = Literal["uniform", "greedy"]


class GreedyStep(NamedTuple):
    """Result of adding one more ingredient to a greedy soup."""

    ingredient: int
    id_acc: float
    """ID validation accuracy of the soup with it, percent."""
    kept: bool


class Soup(NamedTuple):
    """A soup of ingredients, which are numbered in the order in which they were given."""

    used: tuple[int, ...]
    metrics: Mapping[str, float]
    """Metrics of the validation splits, as a trial reports them."""
    steps: tuple[GreedyStep, ...] = ()
    """All decisions of `greedy`, in order."""


def build_soup(
    config: TrialConfig,
    ingredients: Sequence[Path],
    recipe: Recipe,
    destination: Path,
    *,
    device: torch.device | str | None = None,
) -> Soup:
    """Average checkpoints, evaluate the soup on the validation splits, and write it.

    `ingredients` are folders of checkpoints, the most accurate first. Of `config`, model, data and
    evaluation are used, and no settings of training. By default, the soup is evaluated on a GPU if
    there is one.

    Raises:
        ConfigError: the ingredients differ in their tensors, or were trained on other classes than
            the data have now.
    """
    check_ingredients([open_store(folder) for folder in ingredients])
    header = whole_header(ingredients[0])
    run = _evaluation_run(config, header.trains_text, device)
    if run.class_names != header.class_names:
        raise ConfigError("trained on other classes than the data have now", source=ingredients[0])
    images, id_domain = load_split(config, "val"), config.data.id_domain

    def id_acc(chosen: Sequence[int]) -> float:
        _load(run, average([ingredients[index] for index in chosen]))
        with holding(run, run.weights):
            return measure(run, "val", {id_domain: images[id_domain]}, None)[ID_ACC]

    used = tuple(range(len(ingredients)))
    steps = greedy(used, id_acc) if recipe == "greedy" else ()
    if steps:
        used = tuple(step.ingredient for step in steps if step.kept)
    _load(run, average([ingredients[index] for index in used]))
    with holding(run, run.weights):
        metrics = measure(run, "val", images, None)
    weights = {name: value.cpu() for name, value in run.student.plain_state().items()}
    save_weights(destination, weights, Progress(step=config.steps), run.class_names)
    return Soup(used, metrics, steps)


def greedy(
    ingredients: Sequence[int], id_acc: Callable[[Sequence[int]], float]
) -> tuple[GreedyStep, ...]:
    """Choose the ingredients of a greedy soup: those that do not lower its accuracy.

    The first ingredient is always kept. `id_acc` gives the accuracy of a soup on held-out images.
    """
    steps: list[GreedyStep] = []
    used: tuple[int, ...] = ()
    best = float("-inf")
    for ingredient in ingredients:
        found = id_acc((*used, ingredient))
        if kept := not used or found >= best:
            used, best = (*used, ingredient), found
        steps.append(GreedyStep(ingredient, found, kept))
    return tuple(steps)


def average(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the checkpoints' weights; only one is in memory besides their sum."""
    total, _ = load_weights(folders[0])
    for folder in folders[1:]:
        for name, value in load_weights(folder)[0].items():
            if value.is_floating_point():  # counts of batches are the same in all of them
                total[name] += value
    return {n: v / len(folders) if v.is_floating_point() else v for n, v in total.items()}


def check_ingredients(folders: Sequence[Store]) -> None:
    """Raise a `ConfigError` unless all checkpoints have the same tensors and classes."""
    first, *others = (whole_header(folder) for folder in folders)
    for folder, header in zip(folders[1:], others, strict=True):
        if header.class_names != first.class_names:
            raise ConfigError(f"trained on other classes than {folders[0].url}", source=folder.url)
        if header.shapes != first.shapes:
            odd = sorted({*header.shapes.items()} ^ {*first.shapes.items()})[0][0]
            problem = f"cannot be averaged with {folders[0].url}: the tensor {odd!r} is not in both"
            raise ConfigError(f"{problem}, or has another shape", source=folder.url)


def _evaluation_run(
    config: TrialConfig, trains_text: bool, device: torch.device | str | None
) -> TrainState:
    """The state of a run of one worker that only evaluates the (merged) weights of checkpoints.

    Their tensors are those of `flyp` if the text encoder trained, else those of `ft`.
    """
    values = config.model_dump(mode="json", include={"model", "data", "precision"})
    values |= {"eval": {"batch_size": config.eval.batch_size}}
    values |= {"method": {"name": "flyp" if trains_text else "ft"}}
    return start(validate(TrialConfig, values, "evaluation"), device=device)


@torch.no_grad()
def _load(run: TrainState, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a checkpoint and its head into the run's student."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}

    student = run.student
    student.visual.load_state_dict(below("visual."))
    if student.text is None:
        student.head.copy_(weights["head"])
    else:
        student.text.clip.load_state_dict(below("text."))
        student.head = weights["head"].to(run.device)
