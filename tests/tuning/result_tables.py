"""Result tables as plain lists of cells, for tests."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from tuning.reporting.result_table import ResultTable, markdown


def cells(table: ResultTable) -> list[list[str]]:
    """The formatted cells of all rows; `-` if empty."""
    _, _, *lines = markdown(table)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[: len(table.rows)]]


def column(table: ResultTable, header: str) -> list[str]:
    """The formatted cells of the column with this header."""
    headers = [column.header.replace("\n", " ") for column in table.columns]
    return [row[headers.index(header)] for row in cells(table)]


def notes(table: ResultTable) -> str:
    """All notes below the table."""
    return "\n".join(table.notes)


def text_of(renderable: RenderableType, width: int = 100) -> str:
    """Text on a terminal of this width."""
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def printed(renderable: RenderableType, width: int) -> str:
    """Text on a terminal of this width; no line is longer and no cell is cut."""
    text = text_of(renderable, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text
