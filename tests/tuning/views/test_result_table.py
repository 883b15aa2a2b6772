import pytest
from rich.text import Text

from tests.tuning.result_tables import text_of
from tuning.views.result_table import ResultTable, fit_table

NAME = "twenty characters ok"
TABLE = ResultTable(
    ["name", "first\ncolumn", "bb", "cc"],
    [[f"{NAME} {NAME}", "1.2", "[x]", "[y]"], [Text("two", "bold"), "[-3.0, +0.8]", "", ""]],
    ["A note."],
    "a [title]",
)


@pytest.mark.parametrize(("width", "is_whole"), [(80, True), (48, True), (47, False)])
def test_a_narrow_terminal_has_the_first_columns(width, is_whole):
    text = text_of(fit_table(TABLE, width, "mine"), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "a [title]" in text
    assert "[x]" in text
    assert "[-3.0, +0.8]" in text
    assert (f"{NAME} {NAME}" in text) == (width == 80)  # it takes the room that is left
    assert ("[y]" in text) == is_whole
    note = " ".join(text.split("A note.")[1].split())
    assert note == ("" if is_whole else "More columns: `lipsum-tune report mine --open`.")
