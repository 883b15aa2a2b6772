"""What counts as a picture in a folder, and options that a layout has no use for."""

from pathlib import Path

import pytest

from tests.trainers.data.layouts.trees import draw
from trainers.data.layouts.listing import (
    LayoutOptions,
    beside,
    folders_in,
    only,
    picture_files,
    read_text,
)
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def test_pictures_are_found_by_their_ending_in_any_case_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/2.JPEG", "b/1.Png", "a.webp", "b/deep/3.tif"):
        draw(tmp_path / "root" / name)
    for name in ("b/notes.txt", "b/jpg", "b/.jpg", "data.parquet", "b/4.jpg.part"):
        (tmp_path / "root" / name).write_text("no picture")
    store = open_store(tmp_path)
    assert picture_files(store, "root/b") == ["root/b/1.Png", "root/b/2.JPEG", "root/b/deep/3.tif"]
    assert picture_files(store) == ["root/a.webp", *picture_files(store, "root/b")]
    assert picture_files(store, "nowhere") == []


def test_a_class_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    draw(tmp_path / "disk" / "tiger" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "tiger").symlink_to(tmp_path / "disk" / "tiger")
    store = open_store(tmp_path / "root")
    assert folders_in(store) == ["tiger"]
    assert picture_files(store, "tiger") == ["tiger/1.png"]


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
