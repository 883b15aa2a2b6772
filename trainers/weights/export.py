"""Export of fine-tuned weights for open_clip: a `local-dir:` of the whole CLIP, and the head.

The logits of the run are, up to rounding, the exported model's L2-normalised image features times
the head and the logit scale. The bias of sigmoid models is the same for all classes, and left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from trainers.models.averaging import interpolate
from trainers.models.clip import (
    MERGES,
    PREPROCESSING,
    load_clip,
    load_tokenizer,
    location,
    model_config,
)
from trainers.models.config import CONFIG, LOCAL_DIR, ModelConfig
from trainers.models.text_head import cached_heads, model_digest, zero_shot_heads
from trainers.texts import Prompts

MODEL, HEAD = "open_clip_model.safetensors", "head.safetensors"
_HEAD, _TEXT = "head", "text."


def classifier(
    model: ModelConfig,
    prompts: Prompts,
    weights: Mapping[str, Tensor],
    alpha: float | None = None,
) -> tuple[nn.Module, Tensor]:
    """The whole CLIP with the weights of a checkpoint (`visual.*`, perhaps `text.*`), and its head.

    The model is in evaluation mode, float32, on the CPU; the head (K, D).

    With `alpha` (WiSE-FT: Wortsman et al., CVPR 2022) every weight, the head included, becomes
    ``(1 - alpha) zero_shot + alpha fine_tuned``. If the text encoder trained, the interpolated text
    encoder makes the head.
    """
    clip = load_clip(model)
    before = clip.state_dict()
    tuned = {n.removeprefix(_TEXT): v for n, v in weights.items() if n != _HEAD}
    if alpha is None:
        clip.load_state_dict(before | tuned)
        return clip, weights[_HEAD]
    tokenizer = load_tokenizer(model)
    trains_text = any(name.startswith(_TEXT) for name in weights)
    if not trains_text:
        digest = model_digest(clip, model_config(model))
        head = cached_heads(clip, tokenizer, prompts, digest).classes
        head = interpolate({_HEAD: head}, {_HEAD: weights[_HEAD]}, alpha)[_HEAD]
    floats = {name: value for name, value in tuned.items() if value.is_floating_point()}
    clip.load_state_dict(before | interpolate(before, floats, alpha))
    if trains_text:
        head = zero_shot_heads(clip, tokenizer, prompts).classes
    return clip, head


def write_open_clip(folder: Path, model: ModelConfig, clip: nn.Module, head: Tensor) -> str:
    """Write `open_clip_config.json`, `open_clip_model.safetensors`, `head.safetensors`, tokenizer.

    Returned is the Python code that makes the tokenizer, given the `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = cast(Any, clip).visual.preprocess_cfg
    config = {
        "model_cfg": model_config(model),
        "preprocess_cfg": {key: preprocessing[key] for key in PREPROCESSING},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Cloned: a text tower may use one tensor under two names, which safetensors does not allow.
    state = {name: value.contiguous().clone() for name, value in clip.state_dict().items()}
    save_file(state, folder / MODEL, metadata={"format": "pt"})
    save_file({_HEAD: head.contiguous()}, folder / HEAD, metadata={"format": "pt"})
    merges = Path(location(model).removeprefix(LOCAL_DIR), MERGES)
    if hasattr(tokenizer := load_tokenizer(model), "save_pretrained"):  # of Hugging Face
        tokenizer.save_pretrained(folder)
    elif merges.is_file():
        shutil.copyfile(merges, folder / MERGES)
        return f"open_clip.get_tokenizer(f'local-dir:{{folder}}', bpe_path=f'{{folder}}/{MERGES}')"
    return "open_clip.get_tokenizer(f'local-dir:{folder}')"
