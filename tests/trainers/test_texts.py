"""Random texts of every tokenizer: their layout, their tokens, and what they depend on."""

import pytest
import torch

from tests.trainers.tiny_models import random_model
from trainers.errors import ConfigError
from trainers.models.clip import vocabulary
from trainers.models.config import ModelConfig
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts, Vocabulary, random_texts

TINY = vocabulary(ModelConfig())
FIRST_TEXTS = [[2046, 14, 808, 868, 1167, 2047], [2046, 445, 167, 1700, 426, 2047]]
LAYOUTS = {  # tokens before, behind, padding, special tokens, context
    "clip": ([49406], [49407], 0, {49406, 49407}, 24),
    "coca": ([49406], [49407], 0, {0, 49406, 49407}, 24),
    "roberta": ([0], [2], 1, {0, 1, 2, 3, 4}, 24),
    "siglip": ([], [1], 1, {0, 1, 2}, 24),
    "siglip2": ([], [1], 0, {0, 1, 2, 3}, 32),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_random_tokens_stand_in_the_frame_of_the_tokenizer(kind, tmp_path):
    before, behind, padding, special, context = LAYOUTS[kind]
    prompts = Prompts(("cat", "dog"), ("a {}.",))
    words = load_zero_shot(random_model(tmp_path, kind), prompts).vocabulary
    assert words.longest == context - len(before) - len(behind)
    for length in (1, 8, words.longest):
        tokens = random_texts(words, 50, length, seed=3, step=11)
        rest = [*behind, *(context - len(before) - length - len(behind)) * [padding]]
        inside = slice(len(before), len(before) + length)
        assert tokens[:, : inside.start].tolist() == 50 * [before]
        assert tokens[:, inside.stop :].tolist() == 50 * [rest]
        assert special.isdisjoint(tokens[:, inside].unique().tolist())
    every = set(range(int(words.ids.max()) + 1))
    assert every - set(words.ids.tolist()) - special == set()
    with pytest.raises(ConfigError, match=f"the longest: {words.longest}"):
        words.frame(words.longest + 1)


def test_with_clips_tokenizer_the_texts_of_a_seed_are_those_of_0_2():
    tokens = random_texts(TINY, 2, 4, seed=3, step=11)
    assert tokens[:, :6].tolist() == FIRST_TEXTS
    assert not tokens[:, 6:].any()


def test_random_texts_are_a_function_of_seed_and_step():
    first = random_texts(TINY, 4, 8, seed=3, step=11)
    assert torch.equal(first, random_texts(TINY, 4, 8, seed=3, step=11))
    assert not torch.equal(first, random_texts(TINY, 4, 8, seed=3, step=12))
    assert not torch.equal(first, random_texts(TINY, 4, 8, seed=4, step=11))
    many = random_texts(TINY, 2000, 8, seed=0, step=0)[:, 1:9]
    counts = torch.bincount(many.flatten(), minlength=2046)
    assert len(counts) == 2046
    assert counts.float().var() / counts.float().mean() == pytest.approx(1, abs=0.15)  # uniform


class Odd:
    """Padding on the left, a class token at the end, and one token more for most letters."""

    all_special_ids = (0, 1)
    encoder = dict.fromkeys("", 0) | {chr(i): i for i in range(30)}

    def __call__(self, texts):
        return torch.tensor([self.row(text.split()) for text in texts])

    def row(self, letters):
        ids = [i for x in letters for i in ([2] if x not in "ku" else []) + [ord(x) - 95]][:11]
        return [0] * (11 - len(ids)) + ids + [1]


def test_the_layout_of_an_odd_tokenizer_is_found():
    words = Vocabulary(Odd())
    assert words.longest == 11
    tokens = random_texts(words, 100, 3, seed=0, step=0)
    assert not tokens[:, :8].any()
    assert (tokens[:, 8:11] >= 2).all()
    assert (tokens[:, 11] == 1).all()


def test_a_tokenizer_without_letters_is_refused():
    class Blind(Odd):
        def row(self, letters):
            return [0] * 5

    with pytest.raises(ConfigError, match="has no text of 2 tokens"):
        Vocabulary(Blind()).frame(2)
