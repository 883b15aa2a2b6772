"""A configuration without mistakes."""

import pytest
import yaml


@pytest.fixture
def good(images_root):
    return {"trial": {"data": {"root": str(images_root)}, "steps": 6, "eval": {"every": 3}}}


@pytest.fixture
def path(good, tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(good))
    return path
