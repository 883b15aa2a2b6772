import pytest

from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, run_instantly
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.execution.ray_session import ray_session
from tuning.execution.shared_memory import check_shared_memory, shared_memory_of

TWO_OF_TWO = {"trial__data__workers": 2, "search__resources__max_concurrent": 2}
"""Two trials at once, of two processes each."""


@pytest.fixture
def full(monkeypatch):
    """`/proc` has no free bytes."""
    monkeypatch.setattr("tuning.execution.shared_memory.SHARED_MEMORY", "/proc")


SIZES = "search.space.parameters={optim.batch_size: {type: categorical, choices: [64, 512]}}"


@pytest.mark.parametrize(
    ("config", "changes", "images"),
    [
        ("vit_b16", [], 8 * 2 * (256 + 256)),  # 8 CPUs for a GPU
        ("vit_b16", ["trial.data.workers=3", "search.resources.workers=2"], 3 * 2 * (128 + 256)),
        ("vit_b16", [SIZES], 8 * 2 * (512 + 256)),
        ("quickstart", [], 0),
    ],
)
def test_each_process_has_two_batches_of_training_and_of_evaluation(config, changes, images):
    file = load_config(config, changes, check=False)
    assert shared_memory_of(file) == images * 3 * 224**2


def test_a_search_without_room_for_its_loaders_does_not_start(images_root, tmp_path, full):
    file = instant_file(images_root, tmp_path / "runs", **TWO_OF_TWO)
    with without_ray(mlflow=False), pytest.raises(ConfigError, match="--shm-size") as error:
        run_instantly(file)
    images = file.trial.optim.batch_size + file.trial.eval.batch_size
    amount = 2 * 2 * 2 * images * 3 * 48 * 48 / 1e6
    needed = f"0 MB free, and the processes that decode images need up to {amount:,.0f} MB"
    assert needed in error.value.problem
    assert error.value.key == "trial.data.workers"
    assert not (tmp_path / "runs" / "small").exists()


def test_a_machine_without_the_folder_is_not_refused(images_root, tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.execution.shared_memory.SHARED_MEMORY", "/no/such")
    check_shared_memory(instant_file(images_root, tmp_path, **TWO_OF_TWO), 2, is_own_ray=True)


@pytest.mark.ray
def test_nodes_of_a_cluster_are_asked_themselves(images_root, tmp_path, full):
    file = instant_file(images_root, tmp_path, **TWO_OF_TWO)
    with ray_session(), pytest.raises(ConfigError, match=r"/proc of node 127\.0\.0\.1 has 0 MB"):
        check_shared_memory(file, 2, is_own_ray=False)
