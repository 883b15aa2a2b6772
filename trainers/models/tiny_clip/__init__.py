"""The embedded zero-shot model: a genuine open_clip CLIP, small enough to train on a laptop.

`open_clip_config.json` and `open_clip_model.safetensors` beside this file are open_clip's own
`local-dir:` layout; NOTE.md describes how the weights were made. Its vocabulary is CLIP's, cut to
the first merges, so that most of its tokens occur in pre-training: with all 49,408 tokens nearly
all would stay untrained, and random texts would collapse onto one direction.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
from open_clip.tokenizer import SimpleTokenizer, default_bpe

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
    return SimpleTokenizer(
        bpe_path=str(_first_merges(merges)), context_length=text["context_length"]
    )


def _first_merges(count: int) -> Path:
    """A file of the first `count` merges of open_clip's vocabulary, written once."""
    path = platformdirs.user_cache_path("lipsum-tune") / f"clip_bpe_first_{count}.txt.gz"
    if path.exists():
        return path
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as source:
        lines = [next(source) for _ in range(count + 1)]  # the first line is a version
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as handle:
        handle.write(gzip.compress("".join(lines).rstrip("\n").encode(), mtime=0))
    Path(handle.name).replace(path)  # several workers of a node may write it at the same time
    return path
