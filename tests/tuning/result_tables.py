"""Result tables as plain lists of cells, for tests."""

import io

from rich.console import Console


def cells(table):
    """The formatted cells of all rows; `-` if empty."""
    return [[" ".join(str(cell).split("\n")).strip() or "-" for cell in row] for row in table.rows]


def notes(table):
    return "\n".join(table.notes)


def text_of(renderable, width=100):
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def printed(renderable, width):
    """Text on a terminal of this width; no line is longer and no cell is cut."""
    text = text_of(renderable, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text
