from dataclasses import replace

import pytest
from rich.text import Text

from tests.tuning.result_tables import text_of
from tuning.views.result_table import Column, PlainTable, ResultTable, Row, fit_table, plain

TABLE = ResultTable(
    "a [title]",
    [
        Column("name", "name", left=True),
        Column("a", "first\ncolumn", lambda value: f"{value:.1f}", drop=2),
        Column("b", "bb", drop=1, group="the b"),
        Column("c", "cc", drop=1, group="the b"),
        Column("text", "text", left=True, drop=3, min_width=10),
    ],
    [
        Row({"name": "one", "a": 1.25, "b": "[x]", "c": None, "text": "twenty characters ok"}),
        Row({"name": Text("two", "bold"), "a": 0, "unknown": 1}, "dim"),
    ],
    ["A note."],
    "all.parquet",
)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (80, None),
        (50, None),
        (34, "the b"),
        (26, "the b, first column"),
    ],
)
def test_the_least_important_columns_are_left_out(width, left_out):
    text = text_of(fit_table(TABLE, width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    note = " ".join(text.split("A note.")[1].split())
    see = "see `lipsum-tune report --open` or all.parquet."
    expected = f"Columns left out to fit the width: {left_out}; {see}"
    assert note == ("" if left_out is None else expected)
    for header, name in [("bb", "the b"), ("first", "first column"), ("text", "text")]:
        assert (header in text.split("A note.")[0]) == (name not in (left_out or ""))


def test_a_text_column_takes_several_lines_in_the_room_that_is_left():
    text = text_of(fit_table(TABLE, 36), 36)
    assert "twenty" in text
    assert "twenty characters ok" not in text
    assert "twenty characters ok" in text_of(fit_table(TABLE, 80), 80)


def test_cells_are_never_read_as_markup():
    text = text_of(fit_table(TABLE, 80), 80)
    assert "[x]" in text
    assert "a [title]" in text


def test_plain_text_has_all_columns():
    pipe = replace(TABLE, rows=[*TABLE.rows, Row({"name": "a|b\nc"})])
    assert plain(pipe) == PlainTable(
        ["name", "first column", "bb", "cc", "text"],
        [
            ["one", "1.2", "[x]", "", "twenty characters ok"],
            ["two", "0.0", "", "", ""],
            ["a|b\nc", "", "", "", ""],
        ],
        ["A note."],
    )
