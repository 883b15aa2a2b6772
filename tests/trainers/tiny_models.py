"""Models of every kind that open_clip builds, a thousandth of their usual size, as folders."""

import copy
import json
from pathlib import Path

import open_clip
import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig

from trainers.methods.ft import FineTuning
from trainers.models.config import ModelConfig
from trainers.models.student import Student

_VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_CLIP = {"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": _TEXT}


def _with(vision=None, text=None, **others):
    config = copy.deepcopy(_CLIP)
    config["vision_cfg"].update(vision or {})
    config["text_cfg"].update(text or {})
    return config | others


KINDS = {
    "clip": _with(),
    "quick-gelu": _with(quick_gelu=True),
    "custom-text": _with(custom_text=True),
    "projection-with-bias": _with(text={"proj_bias": True}, custom_text=True),
    "no-projection": _with(text={"proj_type": "none", "width": 16}),
    "bidirectional": _with(text={"no_causal_mask": True}, custom_text=True),
    "bidirectional-clip": _with(text={"no_causal_mask": True}),
    "last-token": _with(text={"no_causal_mask": True, "pool_type": "last"}, custom_text=True),
    "causal-last-token": _with(text={"pool_type": "last"}, custom_text=True),
    "sigmoid": _with(init_logit_scale=2.3, init_logit_bias=-10.0, nonscalar_logit_scale=True),
    "fixed-positions": _with(vision={"pos_embed_type": "sin_cos_2d", "pool_type": "avg"}),
    "patch-dropout": _with(vision={"patch_dropout": 0.5}),
    "coca": _with(
        vision={"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        text={"embed_cls": True, "output_tokens": True},
        multimodal_cfg={"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2}
        | {"layers": 1, "attn_pooler_heads": 2},
        custom_text=True,
    ),
    "resnet": _with(vision={"layers": [1, 1, 1, 1], "width": 8, "patch_size": None}),
    "timm": _with(
        vision={"timm_model_name": "test_efficientnet", "timm_pool": "avg", "image_size": 64},
        custom_text=True,
    ),
}


_SIGMOID = {"init_logit_scale": 2.3, "init_logit_bias": -10.0, "custom_text": True}
_SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
_SIGLIP |= {"hf_tokenizer_name": "own", "tokenizer_kwargs": {"clean": "canonicalize"}}
KINDS |= {
    "roberta": _CLIP | {"text_cfg": {"context_length": 24, "hf_tokenizer_name": "own"}},
    "siglip": _with(text=_SIGLIP | {"vocab_size": 300}, **_SIGMOID),
    "siglip2": _with(text=_SIGLIP | {"vocab_size": 303, "context_length": 32}, **_SIGMOID),
}
OTHER_TOKENIZERS = ("roberta", "siglip", "siglip2")
"""Kinds whose tokenizers are of Hugging Face, trained on a few hundred words."""

_THINGS = "cat dog bear airplane umbrella fish clock bus water lily tree house car boat bird king"


def random_model(folder, kind, **changes):
    """The kind with random weights, as a `local-dir:` in a folder of its name."""
    path = Path(folder, kind)
    path.mkdir(exist_ok=True)
    config = copy.deepcopy(KINDS[kind]) | changes
    if kind in OTHER_TOKENIZERS:
        _write_tokenizer(path, kind)
    if kind == "roberta":
        config["text_cfg"]["hf_model_name"] = str(path / "tower")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(
            f"local-dir:{path}", load_weights=False, pretrained_text=False
        )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, path / "open_clip_model.safetensors")
    return ModelConfig(name=f"local-dir:{path}")


def _write_tokenizer(path, kind):
    """The files of the tokenizer that models of this kind have on the hub."""
    texts = [t(word) for t in open_clip.OPENAI_IMAGENET_TEMPLATES for word in _THINGS.split()]
    texts += 20 * list("abcdefghijklmnopqrstuvwxyz")
    if kind == "roberta":
        made = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        made.train_from_iterator(texts, 500, special_tokens=special)
        made.save_model(str(path))
        settings = {"tokenizer_class": "RobertaTokenizer"}
        width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        size = {"vocab_size": 500, "intermediate_size": 64, "max_position_embeddings": 40}
        RobertaConfig(**width, **size).save_pretrained(path / "tower")
    else:
        t5 = {"model_type": "unigram", "eos_id": 1, "unk_id": 2, "bos_id": -1}
        gemma = {"model_type": "bpe", "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True}
        gemma |= {"bos_piece": "<bos>", "eos_piece": "<eos>"}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(path / ("spiece" if kind == "siglip" else "tokenizer")),
            vocab_size=300,
            hard_vocab_limit=False,
            minloglevel=2,
            pad_id=0,
            **(t5 if kind == "siglip" else gemma),
        )
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "</s>"}
        if kind == "siglip2":
            settings = {"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}
            settings |= {"add_bos_token": False, "add_eos_token": True}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def student_of(zero_shot, method=None):
    """The student as a method prepares it; by default that of plain fine-tuning."""
    student = Student(zero_shot)
    (method or FineTuning()).prepare(student)
    return student
