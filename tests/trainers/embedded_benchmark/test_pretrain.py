"""The figures that a pre-training writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainers.embedded_benchmark.pretrain import Recipe, _write
from trainers.models.config import ModelConfig
from trainers.models.loading import load_clip
from trainers.models.text import text_facts
from trainers.texts.random_texts import random_texts


def test_the_effective_rank_is_that_of_the_second_moment(tmp_path: Path) -> None:
    clip, vocabulary = load_clip(ModelConfig()), text_facts(ModelConfig()).vocabulary
    _write(clip, Recipe(), tmp_path, step=1, loss=0.0, seconds=0.0)  # type: ignore[arg-type]
    found = json.loads((tmp_path / "figures.json").read_text())["effective_rank_of_random_texts"]

    assert vocabulary is not None
    tokens = torch.nn.functional.pad(random_texts(vocabulary, 1024, 8, seed=0, step=0), (0, 22))
    with torch.no_grad():
        features = clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
    eigenvalues = torch.linalg.svdvals(features.double()).square()
    ratio = eigenvalues.sum().square() / eigenvalues.square().sum()
    assert found == pytest.approx(ratio.item(), abs=0.01)
