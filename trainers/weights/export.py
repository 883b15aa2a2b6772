"""Export of fine-tuned weights for open_clip: a `local-dir:` of the whole CLIP, and the head.

The logits of the run are, up to rounding, the exported model's L2-normalised image features times
the head and the logit scale.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from trainers.models.architecture import PREPROCESSING, architecture
from trainers.models.byte_pair import merges_of, packed
from trainers.models.config import CONFIG, TINY_CLIP, ModelConfig
from trainers.models.loading import load_clip
from trainers.models.text_head import cached_heads, zero_shot_heads
from trainers.models.tokenizers import FileTokenizer, load_tokenizer
from trainers.texts.prompts import Prompts
from trainers.weights.averaging import interpolate

MODEL, HEAD = "open_clip_model.safetensors", "head.safetensors"
MERGES, TOKENIZER = "bpe.txt.gz", "tokenizer.json"
_HEAD, _TEXT = "head", "text."


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fine-tuned CLIP with a head of K classes and D features."""

    clip: nn.Module
    """A model of open_clip in evaluation mode, float32, on the CPU."""
    head: Tensor
    """(K, D) float32."""

    @property
    def logit_scale(self) -> float:
        """The exponential of CLIP's parameter."""
        return cast(Tensor, self.clip.logit_scale).exp().item()


def classifier(
    model: ModelConfig,
    prompts: Prompts,
    weights: Mapping[str, Tensor],
    alpha: float | None = None,
) -> Classifier:
    """The whole CLIP with the weights of a checkpoint (`visual.*`, `head`, and perhaps `text.*`).

    With `alpha` (WiSE-FT: Wortsman et al., CVPR 2022) every weight, the head included, becomes
    ``(1 - alpha) zero_shot + alpha fine_tuned``. If the text encoder trained, the interpolated text
    encoder makes the head.

    Raises:
        ConfigError: the zero-shot model cannot be loaded.
    """
    clip, tokenizer = load_clip(model), load_tokenizer(model)
    before = clip.state_dict()
    tuned = {n.removeprefix(_TEXT): v for n, v in weights.items() if n != _HEAD}
    if alpha is None:
        clip.load_state_dict(before | tuned)
        return Classifier(clip, weights[_HEAD])
    trains_text = any(name.startswith(_TEXT) for name in weights)
    if not trains_text:
        head = cached_heads(clip, tokenizer, prompts, architecture(model)).classes
        head = interpolate({_HEAD: head}, {_HEAD: weights[_HEAD]}, alpha)[_HEAD]
    floats = {name: value for name, value in tuned.items() if value.is_floating_point()}
    clip.load_state_dict(before | interpolate(before, floats, alpha))
    if trains_text:
        head = zero_shot_heads(clip, tokenizer, prompts).classes
    return Classifier(clip, head)


def write_open_clip(folder: Path, model: ModelConfig, found: Classifier) -> str:
    """Write `open_clip_config.json`, `open_clip_model.safetensors` and `head.safetensors`.

    A tokenizer of its own is written, too: the files of a Hugging Face tokenizer, where open_clip
    looks for them, or the merges as `bpe.txt.gz`.

    Returns:
        Python code that makes the tokenizer, given the `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = cast(Any, found.clip).visual.preprocess_cfg
    config = {
        "model_cfg": dict(architecture(model).config),
        "preprocess_cfg": {key: preprocessing[key] for key in PREPROCESSING},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Cloned: a text tower may use one tensor under two names, which safetensors does not allow.
    state = {name: value.contiguous().clone() for name, value in found.clip.state_dict().items()}
    save_file(state, folder / MODEL, metadata={"format": "pt"})
    save_file({_HEAD: found.head.contiguous()}, folder / HEAD, metadata={"format": "pt"})
    tokenizer = load_tokenizer(model)
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(folder)
    elif isinstance(tokenizer, FileTokenizer):
        shutil.copyfile(tokenizer.path, folder / TOKENIZER)
        return f"tokenizers.Tokenizer.from_file(f'{{folder}}/{TOKENIZER}')"
    elif model.name == TINY_CLIP or model.tokenizer is not None:
        (folder / MERGES).write_bytes(packed(merges_of(tokenizer)))
        arguments = f"context_length={tokenizer.context_length}"
        if clean := dict(architecture(model).text.get("tokenizer_kwargs") or {}).get("clean"):
            arguments += f", clean={clean!r}"
        return f"open_clip.SimpleTokenizer(f'{{folder}}/{MERGES}', {arguments})"
    return "open_clip.get_tokenizer(f'local-dir:{folder}')"
