"""Arguments of `run_search` in place of sections of its configuration."""

import pytest

from search_spaces import Float, SearchSpace
from tests.tuning.run_folders import LR, search_file
from trainers.errors import ConfigError
from tuning.search import run_search

LRS = {LR: Float(low=1e-6, high=1e-3, log=True)}


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ({"sampler": "bogus"}, "sampler.name"),
        ({"sampler": 5}, "sampler"),
        ({"space": "ft"}, "space"),
        ({"space": {"parameters": {LR: {"type": "float", "low": "a", "high": 1}}}},
         f"space.parameters.{LR}.low"),
        ({"space": SearchSpace(branches={"ft": SearchSpace(parameters=LRS)})}, "space"),
    ],
)  # fmt: skip
def test_a_wrong_argument_has_its_key(argument, key, images_root, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_search(search_file(images_root, search__storage=str(tmp_path)), **argument)
    assert (caught.value.key, caught.value.source) == (key, "arguments")
    assert list(tmp_path.iterdir()) == []
