from __future__ import annotations

import open_clip
import pytest
import torch

from trainers import tiny_clip
from trainers.errors import ConfigError
from trainers.models import ModelConfig, check_model, context_length, encode_tokens, load_clip
from trainers.random_texts import random_text_rank, random_texts
from trainers.zero_shot import load_zero_shot, zero_shot_head


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    return load_clip(ModelConfig())


@pytest.mark.parametrize("length", [1, 8, 30])
def test_the_short_text_path_equals_open_clips_padded_one(
    clip: torch.nn.Module, length: int
) -> None:
    tokens = random_texts(tiny_clip.tokenizer().sot_token_id, 16, length, seed=0, step=0)
    padded = torch.zeros(16, context_length(ModelConfig()), dtype=torch.long)
    padded[:, : length + 2] = tokens
    with torch.no_grad():
        expected = clip.encode_text(padded, normalize=True)  # type: ignore[operator]
        torch.testing.assert_close(encode_tokens(clip, tokens), expected, rtol=1e-5, atol=1e-6)


def test_the_short_text_path_equals_a_custom_text_towers() -> None:
    model = open_clip.create_model("ViT-B-32", force_custom_text=True).eval()
    tokens = random_texts(49406, 2, 8, seed=0, step=0)
    padded = torch.zeros(2, 77, dtype=torch.long)
    padded[:, :10] = tokens
    with torch.no_grad():
        expected = model.encode_text(padded, normalize=True)
        torch.testing.assert_close(encode_tokens(model, tokens), expected, rtol=1e-4, atol=1e-5)


def test_the_embedded_model_is_open_clips_and_small(clip: torch.nn.Module) -> None:
    assert isinstance(clip, open_clip.CLIP)
    assert tiny_clip.WEIGHTS.stat().st_size <= 5_000_000


def test_the_cut_vocabulary_keeps_clips_merges_in_their_order() -> None:
    cut, whole = tiny_clip.tokenizer(), open_clip.get_tokenizer("ViT-B-32").__class__()
    assert cut.vocab_size == tiny_clip.model_config()["text_cfg"]["vocab_size"]
    assert cut.sot_token_id == cut.vocab_size - 2
    assert cut.eot_token_id == cut.vocab_size - 1
    # An ordinary token has the id that it has in CLIP's whole vocabulary.
    assert all(cut.decoder[i] == whole.decoder[i] for i in range(cut.sot_token_id))
    assert cut.decode(cut.encode("a photo of a cat.")).strip() == "a photo of a cat ."


def test_random_texts_span_more_than_one_direction_of_the_embedded_model() -> None:
    zero_shot = load_zero_shot(ModelConfig(), ["cat", "dog"])
    assert random_text_rank(zero_shot, 8) > 2


def test_the_head_is_the_mean_over_openais_templates(clip: torch.nn.Module) -> None:
    tokenizer = tiny_clip.tokenizer()
    head = zero_shot_head(clip, tokenizer, ["cat", "teddy-bear"])
    texts = [template("teddy bear") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    with torch.no_grad():
        rows = clip.encode_text(tokenizer(texts), normalize=True)  # type: ignore[operator]
    expected = rows.mean(dim=0) / rows.mean(dim=0).norm()
    assert len(texts) == 80
    torch.testing.assert_close(head[1], expected, rtol=1e-4, atol=1e-5)


def test_the_cached_head_is_the_computed_one(clip: torch.nn.Module) -> None:
    names = ["cat", "dog", "fish"]
    cached = [load_zero_shot(ModelConfig(), names).head for _ in range(2)]
    fresh = zero_shot_head(clip, tiny_clip.tokenizer(), names)
    assert torch.equal(cached[0], cached[1])
    torch.testing.assert_close(cached[1], fresh)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ViT-B-32'"):
        check_model(ModelConfig(name="ViT-B-31"))
    with pytest.raises(ConfigError, match="did you mean 'openai'"):
        check_model(ModelConfig(name="ViT-B-32-quickgelu", pretrained="openay"))
