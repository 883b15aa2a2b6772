"""Weights made of several fine-tunings of one zero-shot model, without further training.

`uniform` and `greedy` are the soups of Wortsman et al., "Model soups: averaging weights of multiple
fine-tuned models improves accuracy without increasing inference time", ICML 2022 (arXiv
2203.05482): the mean of all of them, or (Recipe 1) from the most accurate to the least, without
those that lower the accuracy of the soup on held-out images: here the ID validation split. `stock`
and `lines` move the mean towards the zero-shot weights, see `model_stock` and `lines`.

A head that a text encoder makes is not averaged but made again by the text encoder of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from trainers.checkpoints.format import load_weights, whole_header
from trainers.config import TrialConfig
from trainers.errors import ConfigError, validate
from trainers.evaluation.line import POINTS, LineGoal, choose_point
from trainers.evaluation.metrics import ID_ACC
from trainers.loop.evaluate_run import Images, holding, measure
from trainers.loop.state import TrainState, load_split, start

Recipe: TypeAlias = Literal["uniform", "greedy", "stock", "lines"]

_BLOCK = re.compile(r"((?:visual|text)\.(?!.*text_decoder).*?(?:blocks|layers?))\.(\d+)\.")
"""The list of transformer blocks in the name of a tensor, and the index of one: of open_clip, timm
and Hugging Face. CoCa's decoder is left out: the features do not depend on it."""


class Soup(NamedTuple):
    """A soup of ingredients, which are numbered in the order in which they were given."""

    weights: Mapping[str, Tensor]
    """As in a checkpoint, on the CPU."""
    class_names: tuple[str, ...]
    """(K,) of its head."""
    used: tuple[int, ...]
    metrics: Mapping[str, float]
    """Metrics of the validation splits, as a trial reports them."""
    alpha: float | None = None
    """Of `lines`."""


def build_soup(config: TrialConfig, ingredients: Sequence[Path], recipe: Recipe) -> Soup:
    """Average checkpoints, and evaluate the soup on the validation splits, if possible on a GPU.

    Args:
        config: model, data and evaluation are used, and no settings of training. `lines` chooses
            its alpha by `eval.line_goal` (ID accuracy if there is none), as a trial its point of
            the line.
        ingredients: folders of checkpoints with the same tensors, the most accurate first.

    Raises:
        ConfigError: the ingredients were trained on other classes than the data have now, or
            `lines` finds no transformer blocks.
    """
    header = whole_header(ingredients[0])
    run = _evaluation_run(config, any(name.startswith("text.") for name in header.shapes))
    if run.class_names != header.class_names:
        raise ConfigError("trained on other classes than the data have now", source=ingredients[0])
    zero_shot = {name: value.cpu().clone() for name, value in run.student.plain_state().items()}
    images, id_domain = load_split(config, "val"), config.data.id_domain

    def measured(weights: Mapping[str, Tensor], images: Images) -> dict[str, float]:
        _load(run, weights)
        with holding(run, run.weights):
            return measure(run, "val", images)

    used, alpha = tuple(range(len(ingredients))), None
    if recipe == "greedy":
        id_images = {id_domain: images[id_domain]}
        used = greedy(
            used, lambda some: measured(average([ingredients[i] for i in some]), id_images)[ID_ACC]
        )
    weights = average([ingredients[index] for index in used])
    if recipe == "stock":
        weights = model_stock(zero_shot, weights, ingredients)
    elif recipe == "lines":
        sample = {d: i.sampled(config.eval.rung_images) for d, i in images.items()}
        known = {a: measured(lines(zero_shot, weights, a), sample) for a in (0.0, *POINTS, 1.0)}
        goal = config.eval.line_goal or LineGoal(objectives=((ID_ACC, "max"),))
        alpha = choose_point(known, goal, measure(run, "val", sample, zero_shot=True))
        weights = lines(zero_shot, weights, alpha)
    metrics = measured(weights, images)
    plain = {name: value.cpu() for name, value in run.student.plain_state().items()}
    return Soup(plain, run.class_names, used, metrics, alpha)


def greedy(ingredients: Iterable[int], id_acc: Callable[[Sequence[int]], float]) -> tuple[int, ...]:
    """Choose the ingredients of a greedy soup: those that do not lower its accuracy.

    The first ingredient is always kept. `id_acc` gives the accuracy of a soup on held-out images.
    """
    used: tuple[int, ...] = ()
    best = float("-inf")
    for ingredient in ingredients:
        found = id_acc((*used, ingredient))
        if not used or found >= best:
            used, best = (*used, ingredient), found
    return used


def average(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the checkpoints' weights; only one is in memory besides their sum."""
    total, _ = load_weights(folders[0])
    for folder in folders[1:]:
        for name, value in load_weights(folder)[0].items():
            if value.is_floating_point():  # counts of batches are the same in all of them
                total[name] += value
    return {n: v / len(folders) if v.is_floating_point() else v for n, v in total.items()}


def model_stock(
    zero_shot: Mapping[str, Tensor], mean: Mapping[str, Tensor], folders: Sequence[Path]
) -> dict[str, Tensor]:
    """Model Stock of N checkpoints (Jang et al., ECCV 2024, arXiv 2403.19522): for each tensor::

        t mean + (1 - t) zero_shot,  t = N cos / (1 + (N - 1) cos)

    cos is the mean cosine of the angles between all pairs of updates ``theta_i - zero_shot``, as
    the authors answered for N > 2 (github.com/naver-ai/model-stock, issue 2). Each weight and each
    bias has its own t, the head too. The derivation is for acute angles; where the mean cosine is
    negative, t is 0 here. A tensor that did not train is unchanged.
    """
    directions = {name: torch.zeros_like(value) for name, value in zero_shot.items()}
    cosines = dict.fromkeys(mean, 0.0)
    for folder in folders:
        for name, value in load_weights(folder)[0].items():
            if value.is_floating_point():
                update = value - zero_shot[name]
                direction = update / update.norm().clamp(min=torch.finfo(update.dtype).tiny)
                cosines[name] += (direction * directions[name]).sum().item()  # all pairs with it
                directions[name] += direction
    count, merged = len(folders), dict(mean)
    for name, total in cosines.items():
        cosine = max(0.0, total / (count * (count - 1) / 2))
        ratio = count * cosine / (1 + (count - 1) * cosine)
        if mean[name].is_floating_point():
            merged[name] = torch.lerp(zero_shot[name], mean[name], ratio)
    return merged


def lines(
    zero_shot: Mapping[str, Tensor], weights: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """LiNeS (Wang et al., ICLR 2025, arXiv 2410.17146): updates scaled by depth::

        zero_shot + (alpha + beta (l - 1) / (L - 1)) (weights - zero_shot),  beta = 1 - alpha

    for block l of L, as their code has it for one task (github.com/wang-kee/LiNeS,
    `LiNeS_scaling`); as there, alpha scales what is outside the blocks. Their heads do not train:
    here the head, which is deeper than all blocks, keeps its whole update, and a text encoder that
    trained is scaled by its own blocks. A mean of several models is scaled as one model.

    Raises:
        ConfigError: an encoder has no list of transformer blocks, or more than one.
    """
    blocks: dict[str, dict[str, int]] = {}
    for name in weights:
        if found := _BLOCK.match(name):
            blocks.setdefault(found[1], {})[name] = int(found[2])
    encoders = {name.partition(".")[0] for name in weights} - {"head"}
    if sorted(name.partition(".")[0] for name in blocks) != sorted(encoders):
        problem = "scales the blocks of a transformer, and an encoder of the model is none"
        raise ConfigError(problem, key="--soup", value="lines")
    scales = {"head": 1.0}
    for indices in blocks.values():
        last = max(1, *indices.values())
        scales |= {name: alpha + (1 - alpha) * i / last for name, i in indices.items()}
    return {
        name: torch.lerp(zero_shot[name], value, scales.get(name, alpha))
        if value.is_floating_point()
        else value
        for name, value in weights.items()
    }


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
