"""One real run for the tests of this folder, which only read it."""

import pytest

from tests.tuning.weights.real_runs import real_file, real_run


@pytest.fixture(scope="session")
def real(images_root, tmp_path_factory):
    """Three trials of plain fine-tuning, one of FLYP, and one whose weights are not kept."""
    ft = [{"seed": seed, "optim.lr": 5e-4} for seed in range(3)]
    flyp = {"seed": 3, "method.name": "flyp", "optim.lr": 1e-4}
    folder = tmp_path_factory.mktemp("runs") / "mine"
    file = real_file(images_root)
    found = real_run(folder, file, [*ft, flyp, {"seed": 4, "optim.lr": 5e-4}])
    (lost,) = (folder / "train" / "train-trial-004").iterdir()
    (lost / "student.safetensors").unlink()
    return found
