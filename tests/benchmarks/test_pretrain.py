"""Drawings and captions of the pre-training, and the figures that it writes."""

import json

import pytest
import torch

from tests.benchmarks.captions import (
    all_class_drawings,
    all_drawings,
    caption,
    tidy_name,
    with_article,
)
from tests.benchmarks.pretrain import Recipe, _write
from trainers.embedded_benchmark.arrays import generator
from trainers.embedded_benchmark.classes import load_classes
from trainers.models.clip import load_clip, vocabulary
from trainers.models.config import ModelConfig
from trainers.texts.random_texts import random_texts


def test_the_effective_rank_is_that_of_the_second_moment(tmp_path):
    clip = load_clip(ModelConfig())
    _write(clip, Recipe(), tmp_path, step=1, loss=0.0, seconds=0.0)
    found = json.loads((tmp_path / "figures.json").read_text())["effective_rank_of_random_texts"]

    tokens = random_texts(vocabulary(ModelConfig()), 1024, 8, seed=0, step=0)
    with torch.no_grad():
        features = clip.encode_text(tokens, normalize=True)
    eigenvalues = torch.linalg.svdvals(features.double()).square()
    ratio = eigenvalues.sum().square() / eigenvalues.square().sum()
    assert found == pytest.approx(ratio.item(), abs=0.01)


def test_no_drawing_goes_by_two_names():
    every = [point for points in all_class_drawings().values() for point in points]
    assert len(every) == len(set(every)) > 150


def test_the_pool_of_drawings_holds_things_and_no_letters():
    pool = {*all_drawings()}
    assert len(pool) > 1200
    assert "1F408" in pool
    assert "1F1E6" not in pool
    assert {point for points in load_classes().values() for point in points} <= pool


def test_names_are_tidied_for_captions():
    assert tidy_name("1F408") == "cat"
    assert tidy_name("2702") == "scissors"
    assert tidy_name("1F311") == "new moon"
    assert tidy_name("1F5A4") == "black heart"


def test_captions_speak_of_the_domain():
    rng = generator(0)
    assert "sketch" in "".join(caption("cat", "sketch", rng) for _ in range(20))
    assert with_article("octopus") == "an octopus"
    assert with_article("scissors") == "scissors"
