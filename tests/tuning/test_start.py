"""What a new search checks before it begins, and what it never removes."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, run_instantly
from tests.tuning.run_folders import LR, search_file
from trainers.errors import ConfigError, StorageFailed
from tuning.config.schema import BudgetConfig
from tuning.log.callbacks import Callback
from tuning.log.paths import CONFIG_FILE, JOURNAL_FILE
from tuning.search import run_search


class Breaks(Callback):
    """Damages the journal of a running search at a report."""

    def __init__(self, folder, how):
        self.path, self.waiting = folder / JOURNAL_FILE, [how]

    def trial_reported(self, record):
        if self.waiting:
            self.waiting.pop()(self.path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def into_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "how", [flip, Path.unlink, lambda path: path.write_bytes(b""), into_a_folder]
)
def test_no_damage_to_the_journal_removes_a_run_that_has_begun(how, images_root, tmp_path):
    folder = tmp_path / "small"
    with without_ray(mlflow=False), suppress(ConfigError, OSError, StorageFailed):
        run_instantly(instant_file(images_root, tmp_path), callbacks=[Breaks(folder, how)])
    assert (folder / CONFIG_FILE).is_file()


def test_a_configuration_that_was_made_in_python_is_checked(images_root, tmp_path):
    file = instant_file(images_root, tmp_path)
    changes = {"budget": BudgetConfig(gpu_hours=1.0)}
    copied = file.model_copy(update={"search": file.search.model_copy(update=changes)})
    with pytest.raises(ConfigError) as caught:
        run_search(copied)
    assert caught.value.key == "search.budget.gpu_hours"
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ({"sampler": "bogus"}, "sampler.name"),
        ({"sampler": 5}, "sampler"),
        ({"space": "ft"}, "space"),
        ({"space": {"parameters": {LR: {"type": "float", "low": "a", "high": 1}}}},
         f"space.parameters.{LR}.low"),
    ],
)  # fmt: skip
def test_a_wrong_argument_has_its_key(argument, key, images_root, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_search(search_file(images_root, search__storage=str(tmp_path)), **argument)
    assert (caught.value.key, caught.value.source) == (key, "arguments")
    assert list(tmp_path.iterdir()) == []
