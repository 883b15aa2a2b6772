"""Model configurations of every kind that open_clip builds, a thousandth of their usual size."""

import copy
import json

from trainers.methods.ft import FineTuning
from trainers.models.config import RANDOM, ModelConfig
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


def write_config(folder, kind, **changes):
    """The kind's configuration as a file of that name."""
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(KINDS[kind] | changes), encoding="utf-8")
    return path


def random_model(folder, kind, **changes):
    """The kind with random weights."""
    return ModelConfig(name=str(write_config(folder, kind, **changes)), pretrained=RANDOM)


def student_of(zero_shot, method=None):
    """The student as a method prepares it; by default that of plain fine-tuning."""
    student = Student(zero_shot)
    (method or FineTuning()).prepare(student)
    return student
