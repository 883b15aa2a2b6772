"""The embedded zero-shot model: a genuine open_clip CLIP, small enough to train on a laptop.

`open_clip_config.json` and `open_clip_model.safetensors` beside this file are open_clip's own
`local-dir:` layout; NOTE.md describes how the weights were made. Its vocabulary is CLIP's, cut to
the first merges, so that most of its tokens occur in pre-training: with all 49,408 tokens nearly
all would stay untrained, and random texts would collapse onto one direction.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from trainers.models.byte_pair import byte_pair_tokenizer, clip_merges

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "open_clip_config.json"
WEIGHTS = FOLDER / "open_clip_model.safetensors"


def model_config() -> dict[str, Any]:
    """The `model_cfg` of the open_clip configuration."""
    config: dict[str, Any] = json.loads(CONFIG.read_text(encoding="utf-8"))["model_cfg"]
    return config


@cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's byte-pair tokenizer with the merges that fit into the model's vocabulary."""
    text = model_config()["text_cfg"]
    merges = text["vocab_size"] - 2 * 256 - 2  # bytes, bytes that end a word, start and end
    return byte_pair_tokenizer(clip_merges(merges), text["context_length"])
