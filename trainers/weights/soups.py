"""Greedy soups: weights averaged over several fine-tunings of one zero-shot model.

Recipe 1 of Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", ICML 2022 (arXiv 2203.05482): from the best fine-tuning
to the worst, those whose weights do not make the mean worse on held-out images.

A head that a text encoder makes is not averaged but made again by the text encoder of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from trainers.checkpoints.format import load_weights, whole_header
from trainers.config import TrialConfig
from trainers.errors import ConfigError, validate
from trainers.loop.evaluate_run import holding, measure
from trainers.loop.state import TrainState, load_split, start

Merit: TypeAlias = tuple[float, ...]
"""Values of a model, each better if it is higher."""


class Soup(NamedTuple):
    """A soup of ingredients, which are numbered in the order in which they were given."""

    weights: Mapping[str, Tensor]
    """As in a checkpoint, on the CPU."""
    class_names: tuple[str, ...]
    """(K,) of its head."""
    used: tuple[int, ...]
    metrics: Mapping[str, float]
    """Metrics of the validation splits, as a trial reports them."""


def build_soup(
    config: TrialConfig,
    ingredients: Sequence[Path],
    merit: Callable[[Mapping[str, float]], Merit],
) -> Soup:
    """Average checkpoints, each of which is kept if it lowers no value of the soup's merit.

    Every soup is evaluated on the validation splits, if possible on a GPU.

    Args:
        config: model, data and evaluation are used, and no settings of training.
        ingredients: folders of checkpoints with the same tensors, the best first, which is kept.
        merit: of the metrics of the validation splits.
    """
    header = whole_header(ingredients[0])
    run = _evaluation_run(config, any(name.startswith("text.") for name in header.shapes))
    if run.class_names != header.class_names:
        raise ConfigError("trained on other classes than the data have now", source=ingredients[0])
    images = load_split(config, "val")

    def evaluated(used: Sequence[int]) -> Soup:
        _load(run, average([ingredients[index] for index in used]))
        with holding(run, run.weights):
            metrics = measure(run, "val", images)
            plain = {name: value.cpu().clone() for name, value in run.student.plain_state().items()}
        return Soup(plain, run.class_names, tuple(used), metrics)

    soup = evaluated([0])
    for index in range(1, len(ingredients)):
        larger = evaluated([*soup.used, index])
        pairs = zip(merit(larger.metrics), merit(soup.metrics), strict=True)
        if all(new >= old for new, old in pairs):
            soup = larger
    return soup


def average(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the checkpoints' weights; only one is in memory besides their sum."""
    total, _ = load_weights(folders[0])
    for folder in folders[1:]:
        for name, value in load_weights(folder)[0].items():
            if value.is_floating_point():  # counts of batches are the same in all of them
                total[name] += value
    return {n: v / len(folders) if v.is_floating_point() else v for n, v in total.items()}


def _evaluation_run(config: TrialConfig, trains_text: bool) -> TrainState:
    """The state of a run of one worker that only evaluates the (merged) weights of checkpoints.

    Their tensors are those of `flyp` if the text encoder trained, else those of `ft`.
    """
    values = config.model_dump(
        mode="json", include={"model", "data", "precision", "zero_shot_cache_gb"}
    )
    values |= {"eval": {"batch_size": config.eval.batch_size}}
    values |= {"method": {"name": "flyp" if trains_text else "ft"}}
    return start(validate(TrialConfig, values, "evaluation"))


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
