"""Random texts, texts of the user, and how many directions of the feature space texts span."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers.errors import ConfigError
from trainers.seeding import generator
from trainers.text_files import read_text_file

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.models.tokenizers import Vocabulary
    from trainers.models.zero_shot import ZeroShotModel

PART = 1024
"""Random texts that are encoded at once for the second moment."""


def random_texts(
    vocabulary: Vocabulary, count: int, length: int, *, seed: int, step: int
) -> Tensor:
    """The random texts of one step, (count, length + 2) int64: start, random tokens, end.

    Tokens are uniform over the ordinary ones of the vocabulary. There is no padding: the sequence
    is exactly as long as its tokens.
    """
    import torch

    ids = vocabulary.ids
    drawn = generator(seed, "random texts", step).integers(
        0, len(ids), size=(count, length), dtype=np.int64
    )
    ends = ((0, 0), (vocabulary.start, vocabulary.end))
    return torch.from_numpy(np.pad(ids[drawn], ((0, 0), (1, 1)), constant_values=ends))


def random_text_features(
    zero_shot: ZeroShotModel, count: int, length: int, *, seed: int, step: int
) -> Tensor:
    """L2-normalised features (count, D) of a step's random texts, on the model's device.

    Raises:
        ValueError: the model has no random texts.
    """
    vocabulary = zero_shot.text.vocabulary
    if vocabulary is None:
        raise ValueError(f"{zero_shot.text.model}: its tokenizer has no start token")
    tokens = random_texts(vocabulary, count, length, seed=seed, step=step)
    return zero_shot.encode_tokens(tokens.to(zero_shot.device))


def second_moment(text_features: Tensor) -> Tensor:
    """``C = mean_m t_m t_m'`` of M features (M, D): (D, D), in their precision."""
    return text_features.T @ text_features / len(text_features)


def random_text_moment(
    zero_shot: ZeroShotModel, length: int, *, count: int = PART, seed: int = 0
) -> Tensor:
    """C (D, D) of random texts of `length` tokens, estimated from `count`, a multiple of `PART`."""
    import torch

    parts = [
        second_moment(random_text_features(zero_shot, PART, length, seed=seed, step=part))
        for part in range(count // PART)
    ]
    return torch.stack(parts).mean(dim=0)


def effective_rank(moment: Tensor) -> float:
    """Participation ratio of the eigenvalues of C (D, D): between 1 and D.

    With eigenvalues l_i it is ``(sum l_i)^2 / sum l_i^2``. Near 1, the features of all random texts
    are almost parallel, and a regulariser built on them constrains a single direction only.
    """
    moment = moment.double()
    return float(moment.trace().square() / moment.square().sum())


def read_texts(path: Path) -> list[str]:
    """The non-empty lines of a user's file of texts, in order.

    Raises:
        ConfigError: as `trainers.text_files.read_text_file`, or the file has no text.
    """
    where = {"key": "method.texts_file", "value": str(path)}
    texts = [line.strip() for line in read_text_file(path, **where).splitlines() if line.strip()]
    if not texts:
        raise ConfigError("it has no text", **where)
    return texts


def digest(path: Path) -> str:
    """SHA-256 of what `read_texts` finds: independent of white space and empty lines."""
    return hashlib.sha256("\n".join(read_texts(path)).encode()).hexdigest()
