"""Real pictures, small: what most tests train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.config import TrialConfig
from trainers.data.openmoji.build import Pictures, build

CLASSES = ("apple", "bus", "cactus", "cat", "clock", "fish", "house", "umbrella")


@pytest.fixture(scope="session")
def pictures_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five domains of the embedded benchmark with eight classes and few pictures."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    return build(root, classes=CLASSES, pictures=Pictures(6, 3, 2), workers=1, progress=False)


@pytest.fixture
def trial(pictures_root: Path) -> TrialConfig:
    """A Lipsum-FT of six steps on the real embedded model, evaluated at every third."""
    return TrialConfig.model_validate(
        {
            "data": {"root": str(pictures_root)},
            "method": {"name": "lipsum_ft", "text_count": 16},
            "optim": {"lr": 3e-4, "batch_size": 8},
            "eval": {"every": 3},
            "steps": 6,
        }
    )
