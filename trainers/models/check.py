"""What can be known of a model to fail before a worker starts; no weights are loaded."""

from __future__ import annotations

from trainers.models.architecture import architecture
from trainers.models.config import ModelConfig
from trainers.models.image import check_square
from trainers.models.text import text_facts
from trainers.models.tokenizer import check_tokenizer
from trainers.models.weights import check_pretrained


def check_model(model: ModelConfig) -> None:
    """Raise a `ConfigError` for what cannot be loaded, or not as it was trained.

    That is an unknown name or tag, a missing, broken or unsafe file, a JSON that is no model
    configuration, weights trained with another activation, images that are not square, a package
    that is not installed, or a hub out of reach.
    """
    built = architecture(model)
    check_tokenizer(model, built)
    check_square(built.vision)
    check_pretrained(model, built)
    text_facts(model)
