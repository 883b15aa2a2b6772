"""What counts as an image in a folder, and what is said of files that are none."""

from pathlib import Path

import fsspec
import pytest

from tests.trainers.data.formats.trees import draw
from trainers.data.formats.class_folders import (
    Contents,
    contents,
    folders_in,
    image_files,
    images_by_class,
    images_of_classes,
)
from trainers.data.formats.index import Finding
from trainers.data.storage import open_store


def test_images_are_found_by_their_ending_in_any_case_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/2.JPEG", "b/1.Png", "a.webp", "b/deep/3.tif"):
        draw(tmp_path / "root" / name)
    for name in ("b/notes.txt", "b/jpg", "b/.jpg", "data.parquet", "b/4.jpg.part"):
        (tmp_path / "root" / name).write_text("no image")
    store = open_store(tmp_path)
    assert image_files(store, "root/b") == ["root/b/1.Png", "root/b/2.JPEG", "root/b/deep/3.tif"]
    assert image_files(store) == ["root/a.webp", *image_files(store, "root/b")]
    assert image_files(store, "nowhere") == []


def test_a_class_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    draw(tmp_path / "disk" / "tiger" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "tiger").symlink_to(tmp_path / "disk" / "tiger")
    store = open_store(tmp_path / "root")
    assert folders_in(store) == ["tiger"]
    assert image_files(store, "tiger") == ["tiger/1.png"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Classes cat and dog with an image each, amid files that are no known images."""
    for name in ("cat", "dog"):
        draw(tmp_path / name / "1.png")
    for name in (
        *("x.heic", "dog/noext", "cat/photo.jpg?w=200", "cat/y.jxl", "cat/notes.txt"),
        *("labels.csv", "classes.txt", "README", "cat/README.md", "dog/LICENSE.txt"),
        *("cat/Thumbs.db", ".hidden.heic", "dog/.x/1.heic", "__MACOSX/x.heic"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever")
    return tmp_path


OTHERS = ["cat/notes.txt", "cat/photo.jpg?w=200", "cat/y.jxl", "dog/noext"]


def test_files_of_other_kinds_are_counted_in_one_finding(tree: Path) -> None:
    images, findings = images_by_class(open_store(tree), "", ["cat", "dog"])
    assert images == {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}
    assert findings == [
        Finding(".", "other files", "5 of no known kind of image ignored, e.g. x.heic")
    ]
    assert image_files(open_store(tree)) == ["cat/1.png", "dog/1.png"]


def test_a_bucket_has_the_same_contents(tree: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{tree}/", "/bucket/folders", recursive=True)
    try:
        there = contents(open_store("memory://bucket/folders"))
    finally:
        memory.rm("/bucket", recursive=True)
    assert there == contents(open_store(tree))
    assert [name for name in there.others if "/" in name] == OTHERS


def test_a_link_to_nothing_is_a_missing_image(tree: Path) -> None:
    (tree / "cat" / "2.png").symlink_to(tree / "gone.png")
    (tree / "dog" / "2.png").symlink_to("../cat/1.png")
    (tree / "emu").symlink_to(tree / "unmounted" / "emu")
    (tree / "dog" / "itself.png").symlink_to("itself.png")
    images, findings = images_by_class(open_store(tree), "", folders_in(open_store(tree)))
    assert images["dog"] == ["dog/1.png", "dog/2.png"]
    bad = [finding for finding in findings if finding.bad]
    assert [(f.path, f.kind) for f in bad] == [
        ("emu", "missing file"),
        ("cat/2.png", "missing file"),
        ("dog/itself.png", "missing file"),
    ]


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tree: Path) -> None:
    (tree / "cat" / "loop").symlink_to("..")
    (tree / "cat" / "me").symlink_to(tree / "cat")
    (tree / "again").symlink_to(".")
    store = open_store(tree)
    for path in ("cat", "again"):
        assert contents(store, path).images == (["cat/1.png"] if path == "cat" else [])
    _, findings = images_by_class(store, "", ["again", "cat", "dog"])
    looping = [f.path for f in findings if f.kind == "looping link"]
    assert looping == ["again", "cat/loop", "cat/me"]


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for name in ("cat", "dog"):
        draw(disk / name / "1.png")
    (disk / "cat" / "friend").symlink_to("../dog")
    (disk / "dog" / "friend").symlink_to("../cat")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(disk / "cat")
    (disk / "cat" / "up").symlink_to(tmp_path / "root")
    assert contents(open_store(tmp_path / "root"), "cat") == Contents(
        ["cat/1.png", "cat/friend/1.png"], loops=["cat/friend/friend", "cat/up"]
    )


def test_images_are_named_from_the_data_set_wherever_the_source_begins(tmp_path: Path) -> None:
    draw(tmp_path / "archive" / "val" / "cat" / "1.png")
    draw(tmp_path / "archive" / "val" / "2.png")
    labels = {"cat": 0, "dog": 1}
    above = images_of_classes(open_store(tmp_path), "archive", "val", labels)
    itself = images_of_classes(open_store(tmp_path / "archive"), "", "val", labels)
    assert [example.path for example in above[0]] == ["val/cat/1.png"]
    assert [example.path for example in itself[0]] == ["val/cat/1.png"]
    assert open_store(tmp_path).exists(above[0][0].source.path)  # type: ignore[union-attr]
    assert above[1] == itself[1]
    assert [(f.path, f.kind, f.bad) for f in above[1]] == [
        ("val/2.png", "no class", True),
        ("val/dog", "missing class", False),
    ]
