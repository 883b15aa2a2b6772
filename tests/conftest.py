"""Real images, small: what most tests train on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Before Ray is imported: heads, jobs and clients of the tests all use a token, or, depending on
# which of them came first in this process, some would be refused.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.pop("MLFLOW_TRACKING_URI", None)  # of whoever runs the tests
# Before torch is: two tests run at a time, and its threads would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from trainers.config import TrialConfig
from trainers.data.cache.arrow_cache import CACHE_VARIABLE
from trainers.data.openmoji.build import ImageCounts, build

CLASSES = ("apple", "bus", "cactus", "cat", "clock", "fish", "house", "umbrella")


def pytest_configure() -> None:
    """Make Ray's token, where this user has none yet; one that is there is kept."""
    ray = Path(sys.executable).parent / "ray"
    subprocess.run([ray, "get-auth-token", "--generate"], check=True, capture_output=True)


@pytest.fixture(scope="session", autouse=True)
def _arrow_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of Arrow files for these tests and all processes that they start."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("arrow"))


@pytest.fixture(scope="session")
def images_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five domains of the embedded benchmark with eight classes and few images."""
    root = tmp_path_factory.mktemp("data") / "images"
    return build(root, classes=CLASSES, images=ImageCounts(6, 3, 2), workers=1, progress=False)


@pytest.fixture
def trial(images_root: Path) -> TrialConfig:
    """A Lipsum-FT of six steps on the real embedded model, evaluated at every third."""
    return TrialConfig.model_validate(
        {
            "data": {"root": str(images_root)},
            "method": {"name": "lipsum_ft", "text_count": 16},
            "optim": {"lr": 3e-4, "batch_size": 8},
            "eval": {"every": 3},
            "steps": 6,
        }
    )
