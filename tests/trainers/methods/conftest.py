import pytest

from tests.trainers.tiny_models import random_model
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts

PROMPTS = Prompts(("cat", "dog", "fish"), ("a photo of a {}.", "art of a {}.", "one {}"))


@pytest.fixture(scope="session")
def zero_shot(tmp_path_factory):
    """A tiny CLIP with random weights; three classes, three templates."""
    return load_zero_shot(random_model(tmp_path_factory.mktemp("model"), "clip"), PROMPTS)
