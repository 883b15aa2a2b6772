"""Tokenizers of a model's own: from a file of merges, and from a Hugging Face tokenizer file."""

import gzip
import json

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.trainers.tiny_models import KINDS, random_model
from trainers.errors import ConfigError
from trainers.models.architecture import TOKENIZER_KEYWORDS
from trainers.models.byte_pair import byte_pair_tokenizer, clip_merges, merges_of, packed
from trainers.models.config import ModelConfig
from trainers.models.loading import check_model, load_clip
from trainers.models.text import encode_tokens, text_facts
from trainers.models.tokenizers import load_tokenizer
from trainers.texts.random_texts import random_texts

TEXTS = ["a photo of a cat.", "Two dogs & a bird's nest, 1984!", "x" * 200, ""]


def own(folder, tokenizer, vocab_size, **text):
    """A random CLIP with a tokenizer of its own."""
    config = KINDS["clip"]["text_cfg"] | {"vocab_size": vocab_size} | text
    model = random_model(folder, "clip", text_cfg=config)
    return model.model_copy(update={"tokenizer": str(tokenizer)})


def clip_json(path, merges=1000):
    """CLIP's tokenizer with its first merges, as a `tokenizer.json` of Hugging Face."""
    simple = byte_pair_tokenizer(clip_merges(merges), 77)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): index for word, index in simple.encoder.items()}
    pairs = [tuple(pair.split()) for pair in merges_of(simple)]
    made = Tokenizer(models.BPE(vocabulary, pairs, end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    start, end = "<|startoftext|>", "<|endoftext|>"
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    made.add_special_tokens([start, end])
    made.save(str(path))
    return path


def small_json(path):
    """A vocabulary of letters whose special tokens come first, as a tokenizer of one's own has."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.add_special_tokens(words[:4])
    made.enable_padding(pad_id=0, pad_token="<pad>")
    made.save(str(path))
    return path


@pytest.mark.parametrize("name", ["bpe.txt.gz", "merges.txt"])
def test_a_file_of_merges_gives_open_clips_tokens(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(packed(clip_merges(1000)) if name.endswith("gz") else b"")
    if name.endswith("txt"):
        path.write_text("\n".join(["#version: 0.2", *clip_merges(1000)]) + "\n")
    model = own(tmp_path, path, vocab_size=1514)
    gz = tmp_path / "open_clip.txt.gz"
    gz.write_bytes(gzip.compress("\n".join(["version", *clip_merges(1000)]).encode()))
    expected = SimpleTokenizer(bpe_path=str(gz), context_length=24)
    assert torch.equal(load_tokenizer(model)(TEXTS), expected(TEXTS))
    words = text_facts(model).vocabulary
    assert words is not None
    assert (words.start, words.end, len(words.ordinary)) == (1512, 1513, 1512)
    check_model(model)


def test_a_tokenizer_file_gives_the_tokens_of_the_same_merges(tmp_path):
    merges = tmp_path / "bpe.txt.gz"
    merges.write_bytes(packed(clip_merges(1000)))
    expected = load_tokenizer(own(tmp_path, merges, vocab_size=1514))(TEXTS)
    model = own(tmp_path, clip_json(tmp_path / "tokenizer.json"), vocab_size=1514)
    assert torch.equal(load_tokenizer(model)(TEXTS), expected)
    assert list(text_facts(model).vocabulary.ordinary) == list(range(1512))


def test_random_texts_use_the_start_and_end_that_the_file_adds(tmp_path):
    path = small_json(tmp_path / "tokenizer.json")
    model = own(tmp_path, path, vocab_size=12, pool_type="eos", eos_id=2)
    words = text_facts(model).vocabulary
    assert words is not None
    tokens = random_texts(words, 100, 5, seed=0, step=0)
    assert (tokens[:, 0] == 1).all()
    assert (tokens[:, -1] == 2).all()
    assert set(tokens[:, 1:-1].unique().tolist()) == set(range(4, 12))
    spelled = load_tokenizer(model)(["abh"])[0]
    assert spelled[:6].tolist() == [1, 4, 5, 11, 2, 0]


def test_features_of_random_texts_equal_open_clips(tmp_path):
    """With padding of its own and features read at the end token, wherever it stands."""
    path = small_json(tmp_path / "tokenizer.json")
    model = own(tmp_path, path, vocab_size=12, pool_type="eos", eos_id=2)
    clip, tokenize = load_clip(model), load_tokenizer(model)
    texts = ["abc", "hgfedcba", "a"]
    for text in texts:
        short = tokenize([text])[:, : len(text) + 2]
        expected = clip.encode_text(tokenize([text]), normalize=True)
        found = encode_tokens(clip, short, text_facts(model).pad_token)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_ids_above_the_end_token_are_left_out_if_the_largest_is_read(tmp_path):
    model = own(tmp_path, small_json(tmp_path / "tokenizer.json"), vocab_size=12)
    words = text_facts(model).vocabulary
    assert words is not None
    assert not words.ordinary  # all letters are above </s>, so no random text could be read


@pytest.mark.parametrize(
    ("contents", "name", "vocab_size", "problem"),
    [
        (None, "absent.txt.gz", 1514, "No such file"),
        (b"plain", "bpe.txt.gz", 1514, "Not a gzipped file"),
        (gzip.compress(b"#version\nt h\nonly-one"), "bpe.txt.gz", 1514, "is not two symbols"),
        (packed(["t h", "i n", "t h"]), "bpe.txt.gz", 517, "a merge is twice"),
        (packed(["t h", "i n"]), "bpe.txt.gz", 49408, "has 516 tokens"),
        (packed(["t h", "i n"]), "bpe.txt.gz", 515, "text_cfg.vocab_size of the model is 515"),
        (b"{}", "tokenizer.json", 1514, "not a tokenizer of Hugging Face"),
    ],
    # Without names of their own the cases would be named after bytes that hold the time.
    ids=["absent", "no-gzip", "one-symbol", "twice", "too-few", "too-many", "no-json"],
)
def test_a_file_that_is_no_tokenizer_of_the_model_is_refused(
    contents, name, vocab_size, problem, tmp_path
):
    path = tmp_path / name
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ConfigError) as error:
        check_model(own(tmp_path, path, vocab_size))
    assert (error.value.key, error.value.value) == ("model.tokenizer", str(path))
    assert problem in error.value.problem


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/etc/passwd"}),
        ("text_cfg", "tokenizer_kwargs", {"additional_special_tokens": ["(a+)+$"]}),
        ("text_cfg", "tokenizer_kwargs", {"reduction_mask": "syntax"}),
        ("text_cfg", "tokenizer_kwargs", {"cache_dir": "/tmp"}),
        ("vision_cfg", "timm_model_name", "hf-hub:evil/model"),
        ("vision_cfg", "timm_model_name", "local-dir:/evil"),
    ],
)
def test_a_folder_cannot_name_code_or_files(section, key, value, tmp_path):
    config = KINDS["clip"] | {section: KINDS["clip"][section] | {key: value}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError) as error:
        check_model(ModelConfig(name=f"local-dir:{tmp_path}", trust_remote_code=True))
    assert error.value.key == "model.name"
    assert f"{section}.{key}" in error.value.problem


def test_every_model_of_open_clip_uses_known_keywords_only():
    for name in open_clip.list_models():
        keywords = open_clip.get_model_config(name)["text_cfg"].get("tokenizer_kwargs", {})
        assert set(keywords) <= set(TOKENIZER_KEYWORDS)
