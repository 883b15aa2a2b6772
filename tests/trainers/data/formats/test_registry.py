import subprocess
import sys

import pytest

from trainers.data.formats import LAYOUTS, find_layout
from trainers.errors import ConfigError


def test_every_layout_goes_by_the_name_that_users_type() -> None:
    assert list(LAYOUTS) == [
        "domainnet",
        "imagenet",
        "imagenet-v2",
        "imagenet-r",
        "imagenet-a",
        "imagenet-sketch",
        "objectnet",
        "arrays",
        "webdataset",
        "folders",
        "parquet",
    ]
    for name, layout in LAYOUTS.items():
        assert layout.name == name
        assert layout.listing.__name__ == name.replace("-", "_")
        assert layout.description
        assert "\n" not in layout.description
    assert find_layout("imagenet-r") is LAYOUTS["imagenet-r"]


def test_an_unknown_layout_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'imagenet-v3' is not known.*mean 'imagenet-v2'"):
        find_layout("imagenet-v3")
    with pytest.raises(ConfigError, match=r"'coco' is not known.*arrays, domainnet, folders"):
        find_layout("coco")


def test_a_list_of_the_layouts_needs_no_torch() -> None:
    code = "import sys, trainers.data.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
