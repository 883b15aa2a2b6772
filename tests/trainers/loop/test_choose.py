"""What decides which weights are kept: validation images, and no others."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.trainers.curves import changed
from trainers.loop.choose import choose
from trainers.loop.images import ValidationImages, load_split

PROGRAM = """
from trainers.config import TrialConfig
from trainers.loop.choose import choose
from trainers.loop.images import load_split
from trainers.loop.training import start

config = TrialConfig()
choose(start(config), load_split(config, "val"))
choose(start(config), load_split(config, "test"))
"""


def test_a_final_split_is_of_another_type(trial, whole_root):
    """`make lint` reads the types."""
    assert get_type_hints(choose)["images"] is ValidationImages
    config = changed(trial, data__root=str(whole_root))
    for split in ("val", "test"):
        images = load_split(config, split)
        assert (images.split, [*images]) == (split, [*config.data.domains])
        assert isinstance(images, ValidationImages) == (split == "val")


@pytest.mark.nightly
def test_a_final_split_cannot_be_passed_to_choose(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", str(program)]
    root = Path(__file__).parents[3]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    (error,) = [line for line in found.stdout.splitlines() if "error:" in line]
    assert ":9: error: " in error
    assert 'has incompatible type "Images"; expected "ValidationImages"' in error
