import pytest
from rich.text import Text

from tests.tuning.result_tables import text_of
from tuning.views.result_table import Column, PlainTable, ResultTable, Row, fit_table, plain

NAME = "twenty characters ok"
TABLE = ResultTable(
    "a [title]",
    [
        Column("name", "name"),
        Column("a", "first\ncolumn", drop=2),
        Column("b", "bb", drop=1, group="the b"),
        Column("c", "cc", drop=1, group="the b"),
    ],
    [
        Row({"name": f"{NAME} {NAME}", "a": "1.2", "b": "[x]"}),
        Row({"name": Text("two", "bold"), "a": "0.0", "unknown": "1"}, "dim"),
    ],
    ["A note."],
    "all.parquet",
)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(80, None), (38, None), (30, "the b"), (24, "first column, the b")],
)
def test_the_least_important_columns_are_left_out(width, left_out):
    text = text_of(fit_table(TABLE, width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "a [title]" in text
    assert (f"{NAME} {NAME}" in text) == (width == 80)  # it takes the room that is left
    assert ("[x]" in text) == (left_out is None)
    note = " ".join(text.split("A note.")[1].split())
    see = "see `lipsum-tune report --open` or all.parquet."
    expected = f"Columns left out to fit the width: {left_out}; {see}"
    assert note == ("" if left_out is None else expected)


def test_plain_text_has_all_columns():
    assert plain(TABLE) == PlainTable(
        ["name", "first column", "bb", "cc"],
        [[f"{NAME} {NAME}", "1.2", "[x]", ""], ["two", "0.0", "", ""]],
        ["A note."],
    )
