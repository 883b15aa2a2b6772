from pathlib import Path

import pytest

from trainers.data.formats.class_names import (
    read_class_names_file,
    refuse_duplicates,
    refuse_names_spoken_alike,
)
from trainers.errors import ConfigError


def test_names_stand_one_a_line_in_the_order_of_the_labels(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffzebra\r\nÅngström  \r\n hot dog\r\n".encode())
    assert read_class_names_file(str(file)) == ("zebra", "Ångström", "hot dog")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cat\n\ndog\n", "names.txt: line 2 is blank"),
        ("cat\ndog\ncat\n", "names.txt: duplicate names: 'cat' stands in lines 1 and 3"),
        ("", "names.txt: the file is empty"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "names.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as raised:
        read_class_names_file(str(file))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--class-names = '.*none.txt'"):
        read_class_names_file(str(tmp_path / "none.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--class-names = '.*binary.txt'"):
        read_class_names_file(str(tmp_path / "binary.txt"))


def test_a_name_that_two_labels_have_is_refused_with_both() -> None:
    refuse_duplicates(["crane", "Crane"], "x")
    with pytest.raises(ConfigError, match="x: duplicate names: the classes 0 and 2 are both 'a'"):
        refuse_duplicates(["a", "b", "a"], "x")


def test_names_that_a_prompt_could_not_tell_apart_are_refused_with_both() -> None:
    refuse_names_spoken_alike(["paint_can", "paintbrush", "The_Mona_Lisa"], "x")
    for pair in (["cat", "Cat"], ["t-shirt", "t_shirt"], ["hot dog", "Hot_Dog"]):
        with pytest.raises(ConfigError, match=f"x: duplicate names.*'{pair[0]}' and '{pair[1]}'"):
            refuse_names_spoken_alike(["a", *pair], "x")
