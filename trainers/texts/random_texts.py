"""Random texts, and how many directions of the feature space they span."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainers.models.zero_shot import ZeroShotModel
from trainers.seeding import generator

PART = 1024
"""Random texts that are encoded at once for the second moment."""


def random_texts(
    start_token: int,
    count: int,
    length: int,
    *,
    seed: int,
    step: int,
    masked_token: int | None = None,
) -> Tensor:
    """The random texts of one step, (count, length + 2) int64: start, random tokens, end.

    Token ids are uniform over ``0 .. start_token - 1``, but for a `masked_token`, which the text
    tower would take for padding; the end token is ``start_token + 1``. No padding: the sequence is
    exactly as long as its tokens.
    """
    drawn = start_token if masked_token is None else start_token - 1
    tokens = generator(seed, "random texts", step).integers(
        0, drawn, size=(count, length), dtype=np.int64
    )
    if masked_token is not None:
        tokens += tokens >= masked_token
    return torch.from_numpy(
        np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), (start_token, start_token + 1)))
    )


def random_text_features(
    zero_shot: ZeroShotModel, count: int, length: int, *, seed: int, step: int
) -> Tensor:
    """L2-normalised features (count, D) of a step's random texts, on the model's device.

    Raises:
        ValueError: the model has no random texts.
    """
    text = zero_shot.text
    if text.start_token is None:
        raise ValueError(f"{text.model}: its tokenizer has no start token")
    tokens = random_texts(
        text.start_token, count, length, seed=seed, step=step, masked_token=text.masked_token
    )
    return zero_shot.encode_tokens(tokens.to(zero_shot.device))


def second_moment(text_features: Tensor) -> Tensor:
    """``C = mean_m t_m t_m'`` of M features (M, D): (D, D), in their precision."""
    return text_features.T @ text_features / len(text_features)


@lru_cache(maxsize=1)
def random_text_moment(
    zero_shot: ZeroShotModel, length: int, *, count: int = PART, seed: int = 0
) -> Tensor:
    """C (D, D) of a model's random texts of a length, estimated once from `count` of them.

    Args:
        zero_shot: the model; the last one's is kept.
        length: L.
        count: a multiple of `PART`.
        seed: of the texts.
    """
    parts = [
        second_moment(random_text_features(zero_shot, PART, length, seed=seed, step=part))
        for part in range(count // PART)
    ]
    return torch.stack(parts).mean(dim=0)


def effective_rank(moment: Tensor) -> float:
    """Participation ratio of the eigenvalues of C (D, D): between 1 and D.

    With eigenvalues l_i it is ``(sum l_i)^2 / sum l_i^2``. Near 1, all random texts say the same,
    and a regulariser built on them can hold on to a single direction only.
    """
    moment = moment.double()
    return float(moment.trace().square() / moment.square().sum())
