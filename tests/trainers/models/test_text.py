"""Text features against open_clip's own, for every kind of text tower."""

import open_clip
import pytest
import torch

from tests.trainers.tiny_models import KINDS, random_model
from trainers.errors import ConfigError
from trainers.models import tiny_clip
from trainers.models.config import ModelConfig
from trainers.models.loading import load_clip
from trainers.models.text import TextFacts, encode_tokens, ends_at_the_end_token, text_facts
from trainers.models.tokenizers import Vocabulary
from trainers.texts.random_texts import random_texts

TINY = Vocabulary(2046, 2047, range(2046))
CLIP = Vocabulary(49406, 49407, tuple(range(1, 49406)))  # without CoCa's padding
PADDED = {"bidirectional", "bidirectional-clip", "last-token", "causal-last-token", "coca"}
"""Kinds whose features depend on what is behind the end token, or are read there."""


def padded(tokens, length):
    full = torch.zeros(len(tokens), length, dtype=torch.long)
    full[:, : tokens.shape[1]] = tokens
    return full


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_open_clips_on_padded_sequences(kind, tiny):
    clip = tiny(kind)
    tokens = random_texts(CLIP, 8, 8, seed=0, step=0)
    expected = clip.encode_text(padded(tokens, 24), normalize=True)
    torch.testing.assert_close(encode_tokens(clip, tokens), expected, rtol=0, atol=1e-5)
    assert expected.std(dim=0).max() > 1e-3  # texts differ, so equality says something


@pytest.mark.parametrize("kind", ["clip", "bidirectional", "coca"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_features_have_length_1_to_float32_in_any_precision(kind, precision, tiny):
    tokens = random_texts(CLIP, 8, 8, seed=0, step=0)
    with torch.autocast("cpu", precision):
        lengths = encode_tokens(tiny(kind), tokens).double().norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)


def test_padding_is_left_out_if_it_does_not_matter(tiny):
    assert {kind for kind in KINDS if not ends_at_the_end_token(tiny(kind))} == PADDED


@pytest.mark.parametrize("length", [1, 8, 30])
def test_the_embedded_models_features_equal_open_clips(length):
    clip = load_clip(ModelConfig())
    tokens = random_texts(TINY, 16, length, seed=0, step=0)
    expected = clip.encode_text(padded(tokens, 32), normalize=True)
    torch.testing.assert_close(encode_tokens(clip, tokens), expected, rtol=1e-5, atol=1e-6)


def test_facts_come_from_configuration_and_tokenizer(tmp_path):
    assert text_facts(ModelConfig()) == TextFacts("tiny-clip", 32, TINY)
    built_in = ModelConfig(name="ViT-L-14", pretrained="random")
    assert text_facts(built_in) == TextFacts("ViT-L-14", 77, Vocabulary(49406, 49407, range(49406)))
    coca = text_facts(ModelConfig(name="coca_ViT-B-32", pretrained="random"))
    assert (coca.context_length, coca.vocabulary) == (76, CLIP)
    custom = text_facts(random_model(tmp_path, "clip"))
    assert (custom.context_length, custom.has_random_texts) == (24, True)


@pytest.mark.parametrize(
    ("name", "length"),
    [("ViT-B-16-SigLIP", 64), ("ViT-L-14-CLIPA", 32), ("roberta-ViT-B-32", 77)],
)
def test_other_tokenizers_have_no_random_texts(name, length):
    assert text_facts(ModelConfig(name=name, pretrained="random")) == TextFacts(name, length)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path):
    text = KINDS["clip"]["text_cfg"] | {"vocab_size": 100}
    with pytest.raises(ConfigError, match=r"vocab_size = 100.*49408 tokens"):
        text_facts(random_model(tmp_path, "clip", text_cfg=text))


def test_random_texts_leave_out_the_padding_token():
    tokens = random_texts(Vocabulary(6, 7, (0, 1, 3, 4, 5)), 50, 20, seed=0, step=0)[:, 1:-1]
    assert set(tokens.unique().tolist()) == {0, 1, 3, 4, 5}
    counts = torch.bincount(tokens.flatten(), minlength=6)
    assert counts[[0, 1, 3, 4, 5]].min() > 150  # of 1000 over five ids


def test_the_embedded_model_is_open_clips_and_small():
    assert isinstance(load_clip(ModelConfig()), open_clip.CLIP)
    assert tiny_clip.WEIGHTS.stat().st_size <= 5_000_000


def test_the_cut_vocabulary_keeps_clips_merges_in_their_order():
    cut, whole = tiny_clip.tokenizer(), open_clip.get_tokenizer("ViT-B-32").__class__()
    assert cut.vocab_size == tiny_clip.model_config()["text_cfg"]["vocab_size"]
    assert cut.sot_token_id == cut.vocab_size - 2
    assert cut.eot_token_id == cut.vocab_size - 1
    # An ordinary token has the id that it has in CLIP's whole vocabulary.
    assert all(cut.decoder[i] == whole.decoder[i] for i in range(cut.sot_token_id))
    assert cut.decode(cut.encode("a photo of a cat.")).strip() == "a photo of a cat ."
