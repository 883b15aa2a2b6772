"""Random texts, and how many directions of the feature space they span."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainers.seeding import generator
from trainers.zero_shot import ZeroShotModel


def random_texts(start_token: int, count: int, length: int, *, seed: int, step: int) -> Tensor:
    """The random texts of one step, (count, length + 2) int64: start, random tokens, end.

    Token ids are uniform over ``0 .. start_token - 1``; the end token is ``start_token + 1``. No
    padding: the sequence is exactly as long as its tokens.
    """
    tokens = generator(seed, "random texts", step).integers(
        0, start_token, size=(count, length), dtype=np.int64
    )
    return torch.from_numpy(
        np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), (start_token, start_token + 1)))
    )


def effective_rank(text_features: Tensor) -> float:
    """Participation ratio of the eigenvalues of ``C = mean_m t_m t_m'``: between 1 and D.

    With eigenvalues l_i it is ``(sum l_i)^2 / sum l_i^2``. Near 1, all random texts say the same,
    and a regulariser built on them can hold on to a single direction only.
    """
    moment = text_features.double().T @ text_features.double() / len(text_features)
    return float(moment.trace().square() / moment.square().sum())


@torch.no_grad()
def random_text_rank(zero_shot: ZeroShotModel, length: int, *, count: int = 1024) -> float:
    """The effective rank of the model's random texts of a length, from `count` of them."""
    tokens = random_texts(zero_shot.start_token, count, length, seed=0, step=0)
    return effective_rank(zero_shot.encode_tokens(tokens.to(zero_shot.device)))
