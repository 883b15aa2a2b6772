"""Options that a layout has no use for, and what messages say of files."""

from pathlib import Path

import pytest

from trainers.data.formats.index import (
    LayoutOptions,
    beside,
    only,
    read_text,
)
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def test_only_the_options_of_a_layout_pass() -> None:
    given = LayoutOptions(domains=("real", "sketch"), deduplicate="list.txt")
    only(given, "domainnet", "domains", "deduplicate")
    with pytest.raises(ConfigError) as error:
        only(given, "objectnet", "domain", "deduplicate")
    assert str(error.value) == (
        "objectnet: --domains = 'real,sketch': the layout objectnet has no use for it "
        "(it takes --domain, --deduplicate)"
    )


def test_a_long_list_of_what_is_there_is_cut_short() -> None:
    assert beside([]) == "nothing"
    assert beside(["a", "b"]) == "a, b"
    assert beside([str(i) for i in range(9)]) == "0, 1, 2, 3, 4 and 4 more"


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"list\.txt: cannot be read"):
        read_text(open_store(tmp_path), "list.txt")
