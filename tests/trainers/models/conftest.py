import pytest

from tests.trainers.tiny_models import random_model
from trainers.models.clip import load_clip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny model of a kind with random weights; each is made once."""
    folder = tmp_path_factory.mktemp("models")
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = load_clip(random_model(folder, kind))
        return made[kind]

    return make
