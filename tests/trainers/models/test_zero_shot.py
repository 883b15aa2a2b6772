"""Heads against open_clip's own classifier, and when a kept head is still the right one."""

import copy
import dataclasses

import open_clip
import platformdirs
import pytest
import torch

from tests.trainers.tiny_models import random_model, student_of
from trainers.models import text_head
from trainers.models.clip import load_clip, load_tokenizer, model_config
from trainers.models.text_head import cached_heads, model_digest, zero_shot_heads
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts

PROMPTS = Prompts(
    names=("cat", "teddy bear", "The_Eiffel_Tower", "water lily"),
    templates=("a photo of a {}.", "{}", "itap of the {}, seen from quite far away."),
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache/lipsum-tune/heads"


@pytest.mark.parametrize(
    "kind", ["clip", "bidirectional", "last-token", "coca", "roberta", "siglip"]
)
@pytest.mark.parametrize("texts_a_batch", [4, 1024])
def test_the_head_is_open_clips_zero_shot_classifier(kind, texts_a_batch, tmp_path, monkeypatch):
    model = random_model(tmp_path, kind)
    clip, tokenizer = load_clip(model), load_tokenizer(model)
    monkeypatch.setattr(text_head, "TEXTS_A_BATCH", texts_a_batch)
    head = zero_shot_heads(clip, tokenizer, PROMPTS).classes
    expected = open_clip.build_zero_shot_classifier(
        clip, tokenizer, PROMPTS.names, PROMPTS.templates
    ).T
    torch.testing.assert_close(head, expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_a_head_is_computed_once_and_read_back(cache, tmp_path, monkeypatch):
    model = random_model(tmp_path, "clip")
    first = load_zero_shot(model, PROMPTS)
    assert len(list(cache.glob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(text_head, "heads_of", None)  # a second computation would fail
        second = load_zero_shot(model, PROMPTS)
    assert torch.equal(first.head, second.head)
    fresh = zero_shot_heads(first.clip, load_tokenizer(model), PROMPTS).classes
    assert torch.equal(second.head, fresh)


def test_whatever_goes_into_a_head_makes_another_file(cache, tmp_path):
    model = random_model(tmp_path, "clip")
    clip, tokenizer, config = load_clip(model), load_tokenizer(model), model_config(model)
    digest = model_digest(clip, config)
    assert model_digest(copy.deepcopy(clip), copy.deepcopy(config)) == digest
    trained = copy.deepcopy(clip)
    trained.ln_final.bias.data[3] += 1e-6
    quick = model_digest(clip, config | {"quick_gelu": True})
    assert len({digest, quick, model_digest(trained, config)}) == 3
    inputs = [
        (tokenizer, PROMPTS, digest),
        (tokenizer, PROMPTS, quick),
        (tokenizer, dataclasses.replace(PROMPTS, names=PROMPTS.names[::-1]), digest),
        (tokenizer, dataclasses.replace(PROMPTS, templates=PROMPTS.templates[:2]), digest),
        (open_clip.SimpleTokenizer(context_length=24, clean="canonicalize"), PROMPTS, digest),
    ]
    for tokens, prompts, of_model in 2 * inputs:
        cached_heads(clip, tokens, prompts, of_model)
    assert len(list(cache.glob("*.safetensors"))) == len(inputs)


def test_heads_unused_for_longest_leave_the_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(text_head, "KEPT_HEADS", 2)
    model = random_model(tmp_path, "clip")
    clip, tokenizer = load_clip(model), load_tokenizer(model)
    for digest in ("a", "b", "a", "c"):
        cached_heads(clip, tokenizer, PROMPTS, digest)
    assert len(list(cache.glob("*.safetensors"))) == len(list(cache.glob("*.lock"))) == 2
    monkeypatch.setattr(text_head, "heads_of", None)  # a second computation would fail
    for digest in ("a", "c"):
        cached_heads(clip, tokenizer, PROMPTS, digest)


@pytest.mark.parametrize(("kind", "expected"), [("resnet", True), ("timm", True), ("clip", False)])
def test_a_convolutional_network_has_channels_last(kind, expected, cache, tmp_path):
    model = random_model(tmp_path, kind)
    zero_shot, plain = load_zero_shot(model, PROMPTS), load_clip(model)
    kernels = [p for p in student_of(zero_shot).visual.parameters() if p.dim() == 4]
    last = [
        p.is_contiguous(memory_format=torch.channels_last) for p in kernels if p[0, 0].numel() > 1
    ]
    assert all(last) == expected
    size = zero_shot.image_input.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(plain.encode_image(images), dim=-1)
    torch.testing.assert_close(zero_shot.image_features(images), features, rtol=0, atol=1e-5)
