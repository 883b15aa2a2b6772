"""Heads against open_clip's own classifier, and when a kept head is still the right one."""

import copy
import dataclasses

import open_clip
import platformdirs
import pytest
import torch
from torch import nn

from tests.trainers.installed import install
from tests.trainers.tiny_models import random_model
from trainers.models import text_head, tiny_clip
from trainers.models.architecture import architecture
from trainers.models.config import ModelConfig
from trainers.models.loading import load_clip
from trainers.models.text_head import head_digest, zero_shot_heads
from trainers.models.tokenizers import load_tokenizer
from trainers.models.zero_shot import load_zero_shot
from trainers.texts.prompts import Prompts
from trainers.texts.random_texts import effective_rank, random_text_moment

PROMPTS = Prompts(
    names=("cat", "teddy bear", "The_Eiffel_Tower", "water lily"),
    templates=("a photo of a {}.", "{}", "itap of the {}, seen from quite far away."),
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A folder for heads of this test alone."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache/lipsum-tune/heads"


@pytest.mark.parametrize("kind", ["clip", "bidirectional", "last-token", "coca", "sigmoid"])
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


class BagOfTokens(nn.Module):
    """A text tower that is none of open_clip's transformers, as Hugging Face's are."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(49408, 16)

    def forward(self, tokens):
        return self.embedding(tokens).mean(dim=1)


def test_foreign_text_towers_are_used_through_encode_text(tmp_path):
    model = random_model(tmp_path, "custom-text")
    clip, tokenizer = load_clip(model), load_tokenizer(model)
    clip.text = BagOfTokens()
    expected = open_clip.build_zero_shot_classifier(
        clip, tokenizer, PROMPTS.names, PROMPTS.templates
    ).T
    torch.testing.assert_close(zero_shot_heads(clip, tokenizer, PROMPTS).classes, expected)


def test_tiny_clips_head_is_the_mean_over_openais_templates():
    clip, tokenizer = load_clip(ModelConfig()), tiny_clip.tokenizer()
    head = zero_shot_heads(clip, tokenizer, Prompts(("cat", "teddy bear"))).classes
    texts = [template("teddy bear") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    rows = clip.encode_text(tokenizer(texts), normalize=True)
    expected = rows.mean(dim=0) / rows.mean(dim=0).norm()
    assert len(texts) == 80
    torch.testing.assert_close(head[1], expected, rtol=1e-4, atol=1e-5)


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


def test_half_a_file_is_made_again(cache, tmp_path):
    model = random_model(tmp_path, "clip")
    first = load_zero_shot(model, PROMPTS).head
    (kept,) = cache.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:50])
    assert torch.equal(load_zero_shot(model, PROMPTS).head, first)
    assert torch.equal(load_zero_shot(model, PROMPTS).head, first)


def test_a_head_that_cannot_be_kept_is_made_all_the_same(cache, tmp_path):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    model = random_model(tmp_path, "clip")
    head = load_zero_shot(model, PROMPTS).head
    assert torch.equal(
        head, zero_shot_heads(load_clip(model), load_tokenizer(model), PROMPTS).classes
    )


def test_whatever_goes_into_a_head_changes_its_key(tmp_path, monkeypatch):
    model = random_model(tmp_path, "clip")
    clip, tokenizer, built = load_clip(model), load_tokenizer(model), architecture(model)
    key = head_digest(clip, tokenizer, PROMPTS, built)
    assert head_digest(copy.deepcopy(clip), tokenizer, PROMPTS, built) == key

    others = [
        head_digest(clip, tokenizer, prompts, built)
        for prompts in (
            dataclasses.replace(PROMPTS, names=PROMPTS.names[::-1]),
            dataclasses.replace(PROMPTS, templates=PROMPTS.templates[:2]),
        )
    ]
    other_tokens = open_clip.SimpleTokenizer(context_length=24, clean="canonicalize")
    others.append(head_digest(clip, other_tokens, PROMPTS, built))
    quick = dataclasses.replace(built, config={**built.config, "quick_gelu": True})
    others.append(head_digest(clip, tokenizer, PROMPTS, quick))
    trained = copy.deepcopy(clip)
    trained.ln_final.bias.data[3] += 1e-6
    others.append(head_digest(trained, tokenizer, PROMPTS, built))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        others.append(head_digest(clip, tokenizer, PROMPTS, built))
    with monkeypatch.context() as patch:
        install(patch, tmp_path, "transformers")
        others.append(head_digest(clip, tokenizer, PROMPTS, built))
    assert len({key, *others}) == 8

    image_side = copy.deepcopy(clip)
    image_side.visual.proj.data += 1
    image_side.logit_scale.data += 1
    assert head_digest(image_side, tokenizer, PROMPTS, built) == key


def test_random_texts_span_several_directions_of_tiny_clip():
    zero_shot = load_zero_shot(ModelConfig(), PROMPTS)
    assert zero_shot.text.has_random_texts
    assert effective_rank(random_text_moment(zero_shot, 8)) > 2
