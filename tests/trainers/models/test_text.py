"""Text features against open_clip's own, for every kind of text tower."""

import pytest
import torch

from tests.trainers.tiny_models import KINDS, OTHER_TOKENIZERS
from trainers.models.text import encode_tokens, ends_at_the_end_token, ignored_tokens, shortened

PADDED = {
    "bidirectional", "bidirectional-clip", "last-token", "causal-last-token", "coca",
    *OTHER_TOKENIZERS,
}  # fmt: skip
"""Kinds whose features depend on what is behind the end token, or are read there."""


def tokens_of(kind):
    highest = 299 if kind in OTHER_TOKENIZERS else 49407
    context = 32 if kind == "siglip2" else 24
    tokens = torch.zeros(8, context, dtype=torch.long)
    tokens[:, :9] = torch.randint(5, highest, (8, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 9] = highest
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_open_clips_on_padded_sequences(kind, tiny):
    clip, tokens = tiny(kind), tokens_of(kind)
    expected = clip.encode_text(tokens, normalize=True)
    short = shortened(clip, tokens)
    assert short.shape[1] == (tokens.shape[1] if kind in PADDED else 10)
    torch.testing.assert_close(encode_tokens(clip, short), expected, rtol=0, atol=1e-5)
    assert expected.std(dim=0).max() > 1e-3  # texts differ, so equality says something


@pytest.mark.parametrize("kind", ["clip", "bidirectional", "coca", "siglip"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_features_have_length_1_to_float32_in_any_precision(kind, precision, tiny):
    with torch.autocast("cpu", precision):
        lengths = encode_tokens(tiny(kind), tokens_of(kind)).double().norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)


def test_padding_is_left_out_if_it_does_not_matter(tiny):
    assert {kind for kind in KINDS if not ends_at_the_end_token(tiny(kind))} == PADDED
    assert {kind for kind in KINDS if ignored_tokens(tiny(kind))} == {"coca"}
