"""Zero-shot models: any that open_clip knows or can read, and the embedded `tiny-clip`.

`config` is what a user writes; `architecture` finds the model configuration that is meant;
`weights`, `hub` and `check` tell what will not work before a worker starts; `image` and `text` ask
the two sides what they take and give; `loading` makes the model.
"""

from trainers.models.activations import (
    blocks,
    check_activation_checkpointing,
    keep_no_activations,
)
from trainers.models.architecture import Architecture, architecture
from trainers.models.check import check_model
from trainers.models.config import RANDOM, TINY_CLIP, ModelConfig
from trainers.models.image import ImageInput, image_input, pooled_features
from trainers.models.loading import create_clip, load_clip, skeleton
from trainers.models.text import TextFacts, encode_tokens, ends_at_the_end_token, text_facts
from trainers.models.tokenizer import load_tokenizer

__all__ = [
    "RANDOM",
    "TINY_CLIP",
    "Architecture",
    "ImageInput",
    "ModelConfig",
    "TextFacts",
    "architecture",
    "blocks",
    "check_activation_checkpointing",
    "check_model",
    "create_clip",
    "encode_tokens",
    "ends_at_the_end_token",
    "image_input",
    "keep_no_activations",
    "load_clip",
    "load_tokenizer",
    "pooled_features",
    "skeleton",
    "text_facts",
]
