"""Zero-shot models: any that open_clip can load, and the embedded `tiny-clip`.

`config` is the section of the configuration; `architecture`, `weights` and `hub` find what it
names; `image`, `text` and `tokenizers` describe
the two sides of a model; `loading` checks and loads it.
"""

from trainers.models.activations import (
    blocks,
    check_activation_checkpointing,
    keep_no_activations,
)
from trainers.models.architecture import Architecture, architecture
from trainers.models.config import RANDOM, TINY_CLIP, ModelConfig
from trainers.models.image import ImageInput, image_input, pooled_features
from trainers.models.loading import check_model, create_clip, load_clip, skeleton
from trainers.models.text import (
    TextFacts,
    encode_tokens,
    ends_at_the_end_token,
    text_facts,
)
from trainers.models.tokenizers import Vocabulary, load_tokenizer

__all__ = [
    "RANDOM",
    "TINY_CLIP",
    "Architecture",
    "ImageInput",
    "ModelConfig",
    "TextFacts",
    "Vocabulary",
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
