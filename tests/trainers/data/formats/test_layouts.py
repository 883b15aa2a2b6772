"""The list of layouts, the options that they take, and texts that all of them read."""

import subprocess
import sys
from dataclasses import fields

import pytest

from tests.trainers.data.formats.more_trees import TREES
from tests.trainers.data.formats.reading import read, read_in_bucket, refusal
from trainers.data.formats import LAYOUTS
from trainers.data.formats.imagenet import DATA_SETS
from trainers.data.formats.index import (
    LayoutOptions,
    check_distinct,
    check_distinct_in_prompts,
    read_class_names_file,
    read_text,
)
from trainers.data.storage import open_store
from trainers.errors import ConfigError, listed

OPTIONS = {  # that each layout takes
    "domainnet": ("domains", "deduplicate"),
    **dict.fromkeys(DATA_SETS, ("domain",)),
    "arrays": ("domain", "domains", "class_names"),
    "webdataset": ("domain", "split", "class_names"),
    "folders": ("domain", "domains", "id", "ood", "split", "class_names"),
    "parquet": ("domain", "split", "class_names", "image_column", "label_column"),
}
SEVERAL = ("domains", "ood")


def test_every_layout_has_a_description_options_and_a_tree():
    assert list(LAYOUTS) == list(OPTIONS)
    assert LAYOUTS.keys() == TREES.keys()
    assert all(layout.description.count("\n") == 0 for layout in LAYOUTS.values())


@pytest.mark.parametrize("layout", TREES)
def test_a_tree_in_a_bucket_reads_the_same(layout, tmp_path):
    make, options, count = TREES[layout]
    root = make(tmp_path / "source")
    found = read(layout, root, **vars(options))
    assert sum(len(index.examples) for index in found) == count
    assert read_in_bucket(layout, root, **vars(options)) == found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_of_another_layout_is_told_what_is_there(layout, tmp_path):
    (tmp_path / "pictures").mkdir()
    error = refusal(layout, tmp_path)
    assert error.source == str(tmp_path)
    assert "pictures" in f"{error.problem} {error.hint}"


@pytest.mark.parametrize("layout", OPTIONS)
def test_options_that_a_layout_does_not_use_are_refused(layout, tmp_path):
    for option in {field.name for field in fields(LayoutOptions)} - {*OPTIONS[layout]}:
        value = ("x", "y") if option in SEVERAL else "x"
        error = refusal(layout, tmp_path, **{option: value})
        assert error.key == f"--{option.replace('_', '-')}"
        assert error.value == ("x,y" if option in SEVERAL else "x")
        assert str(error.hint).count("--") == len(OPTIONS[layout])


def test_a_list_of_the_layouts_needs_no_torch():
    code = "import sys, trainers.data.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_long_list_is_cut_short_in_a_message():
    assert listed([]) == "nothing"
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(9)]) == "0, 1, 2, 3, 4 and 4 more"


def test_a_text_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("list.txt", "latin.txt"):
        with pytest.raises(ConfigError) as caught:
            read_text(open_store(tmp_path), name)
        assert caught.value.source == f"{tmp_path}/{name}"


def test_class_names_are_lines_in_the_order_of_the_labels(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffzebra\r\nÅngström  \r\n hot dog\r\n".encode())
    assert read_class_names_file(str(file)) == ("zebra", "Ångström", "hot dog")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"cat\n\ndog\n", "line 2 is blank"),
        (b"cat\ndog\ncat\n", "the classes 0 and 2 (from 0) are both 'cat'"),
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "can't decode"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_of_class_names_is_refused(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "names.txt").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_class_names_file(str(tmp_path / "names.txt"))
    assert problem in caught.value.problem
    assert str(tmp_path) in str(caught.value)


def test_names_that_a_prompt_cannot_tell_apart_are_refused():
    check_distinct(["crane", "Crane"], "x")
    check_distinct_in_prompts(["paint_can", "paintbrush", "The_Mona_Lisa"], "x")
    for pair in (["cat", "Cat"], ["t-shirt", "t_shirt"], ["hot dog", "Hot_Dog"]):
        with pytest.raises(ConfigError, match=f"'{pair[0]}' and '{pair[1]}'"):
            check_distinct_in_prompts(["a", *pair], "x")
