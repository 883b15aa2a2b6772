"""A table of results as one object, for the terminal (rich) and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Cell: TypeAlias = str | Text
"""Text of a cell. A `Text` has styles; a `str` is never read as markup."""
LEAST = 3
"""Columns that a terminal always shows."""


@dataclass(frozen=True)
class ResultTable:
    """Text in rows and columns, with sentences below it."""

    columns: Sequence[str]
    """Headers, which may have a line break. The first column has names and may wrap."""
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    title: str = ""
    """In the terminal; the page has headings of its own."""


def fit_table(table: ResultTable, width: int | None = None) -> Table:
    """The table for a terminal of this width: whole, or else its first columns and a note."""
    console = Console(width=width)
    for number in range(len(table.columns), min(LEAST, len(table.columns)) - 1, -1):
        rendered = Table(
            title=escape(table.title),
            caption_justify="left",
            header_style="bold",
            box=SIMPLE_HEAD,  # the narrowest, so that 80 columns hold as much as possible
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        rendered.add_column(escape(table.columns[0]), min_width=20, overflow="fold")
        for index, header in enumerate(table.columns[1:number], 1):
            texts = [header, *(str(row[index]) for row in table.rows)]
            widest = max(cell_len(line) for text in texts for line in text.split("\n"))
            # rich takes a column for as narrow as its longest word, though it must not wrap.
            rendered.add_column(escape(header), justify="right", no_wrap=True, min_width=widest)
        for row in table.rows:
            rendered.add_row(*(Text.assemble(cell) for cell in row[:number]))
        unlimited = console.options.update(width=10_000)
        if width is None or Measurement.get(console, unlimited, rendered).minimum <= width:
            break
    more = ["More columns: `lipsum-tune report --open`."] if number < len(table.columns) else []
    rendered.caption = escape("\n".join([*table.notes, *more])) or None
    return rendered


def borderless_table(*headers: str, text: Sequence[int] = (0,)) -> Table:
    """An empty table of numbers, without lines; the columns `text` are aligned to the left.

    The last column alone may wrap.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for index, header in enumerate(headers):
        table.add_column(
            escape(header),
            justify="left" if index in text else "right",
            no_wrap=index < len(headers) - 1,
        )
    return table
