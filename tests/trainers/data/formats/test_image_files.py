"""What counts as an image in a folder, and what is reported of other files."""

import fsspec
import pytest

from tests.trainers.data.formats.trees import draw
from trainers.data.formats.image_files import class_images, contents, folders_in
from trainers.data.formats.index import Finding
from trainers.data.storage import open_store


def test_images_are_found_by_extension_at_any_depth(tmp_path):
    for name in ("b/2.JPEG", "b/1.Png", "b/deep/3.tif"):
        draw(tmp_path / "root" / name)
    (tmp_path / "root" / "a.webp").touch()  # that it is empty is found when it is read
    for name in ("b/notes.txt", "b/jpg", "b/.jpg", "data.parquet", "b/4.jpg.part"):
        (tmp_path / "root" / name).write_text("no image")
    store, below = open_store(tmp_path), ["root/b/1.Png", "root/b/2.JPEG", "root/b/deep/3.tif"]
    assert contents(store, "root/b").images == below
    assert contents(store).images == ["root/a.webp", *below]
    assert contents(store, "nowhere").images == []


@pytest.fixture
def tree(tmp_path):
    """Classes cat and dog with an image each, amid files that are not known images."""
    for name in ("cat", "dog"):
        draw(tmp_path / name / "1.png")
    for name in (
        *("x.heic", "dog/noext", "cat/photo.jpg?w=200", "cat/y.jxl", "cat/notes.txt"),
        *("labels.csv", "classes.txt", "README", "cat/README.md", "dog/LICENSE.txt"),
        *("cat/Thumbs.db", "cat/._1.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg"),
        *(".hidden.heic", "dog/.x/1.jpg", "__MACOSX/x.jpg", ".cache/x.jpg"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever")
    return tmp_path


def test_files_of_other_kinds_are_counted_in_one_finding(tree):
    store = open_store(tree)
    images, findings = class_images(store, "", folders_in(store))
    assert images == {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}
    detail = "5 of no known kind of image ignored, e.g. x.heic"
    assert findings == [Finding(".", "other files", detail)]


def test_a_bucket_has_the_same_contents(tree):
    memory = fsspec.filesystem("memory")
    memory.put(f"{tree}/", "/bucket/folders", recursive=True)
    try:
        there = contents(open_store("memory://bucket/folders"))
    finally:
        memory.rm("/bucket", recursive=True)
    assert there == contents(open_store(tree))


def test_a_broken_link_is_a_missing_image(tree):
    (tree / "cat" / "2.png").symlink_to(tree / "gone.png")
    (tree / "dog" / "2.png").symlink_to("../cat/1.png")
    (tree / "emu").symlink_to(tree / "unmounted" / "emu")
    (tree / "dog" / "itself.png").symlink_to("itself.png")
    images, findings = class_images(open_store(tree), "", folders_in(open_store(tree)))
    assert images["dog"] == ["dog/1.png", "dog/2.png"]
    assert [(f.path, f.kind) for f in findings if f.bad] == [
        ("emu", "missing file"),
        ("cat/2.png", "missing file"),
        ("dog/itself.png", "missing file"),
    ]


def test_a_class_folder_may_be_a_link_but_links_in_it_are_not_followed(tmp_path):
    draw(tmp_path / "disk" / "tiger" / "1.png")
    draw(tmp_path / "root" / "cat" / "1.png")
    (tmp_path / "root" / "tiger").symlink_to(tmp_path / "disk" / "tiger")
    (tmp_path / "root" / "cat" / "loop").symlink_to("..")
    store = open_store(tmp_path / "root")
    assert folders_in(store) == ["cat", "tiger"]
    images, findings = class_images(store, "", ["cat", "tiger"])
    assert images == {"cat": ["cat/1.png"], "tiger": ["tiger/1.png"]}
    detail = "1 of no known kind of image ignored, e.g. cat/loop"
    assert findings == [Finding(".", "other files", detail)]
