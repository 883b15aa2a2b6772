"""A table of results as one object, for the terminal (rich) and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
NAME_WIDTH = 24
"""The first column gets up to this width before others are shown."""


@dataclass(frozen=True)
class ResultTable:
    """Text in rows and columns, with sentences below it."""

    columns: Sequence[str]
    """Headers, which may have a line break. The first column has names and may wrap."""
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    title: str = ""
    """In the terminal; the page has headings of its own."""


def fit_table(table: ResultTable, width: int | None = None, run: str = "RUN") -> Table:
    """The table for a terminal of this width: whole, or else its first columns and a note.

    Args:
        run: what a user types for the run, whose report has all columns.
    """
    widest = max((cell_len(str(row[0])) for row in table.rows), default=0)
    for number in range(len(table.columns), min(LEAST, len(table.columns)) - 1, -1):
        rendered = compact_table(
            title=escape(table.title), caption_justify="left", header_style="bold"
        )
        first = min(widest, NAME_WIDTH)
        rendered.add_column(escape(table.columns[0]), min_width=first, overflow="fold")
        for index, header in enumerate(table.columns[1:number], 1):
            add_rigid_column(rendered, header, [row[index] for row in table.rows], justify="right")
        for row in table.rows:
            rendered.add_row(*(Text.assemble(cell) for cell in row[:number]))
        if width is None or fits(rendered, width):
            break
    is_whole = number == len(table.columns)
    more = [] if is_whole else [f"More columns: `lipsum-tune report {run} --open`."]
    rendered.caption = escape("\n".join([*table.notes, *more])) or None
    return rendered


def compact_table(**look: Any) -> Table:
    """An empty table with the narrowest lines, so that 80 columns hold as much as possible."""
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **look)


def add_rigid_column(table: Table, header: str, cells: Iterable[Cell], **look: Any) -> None:
    """Add a column for these cells that is never narrower than its longest line."""
    # rich takes a column for as narrow as its longest word, even if it must not wrap.
    lines = "\n".join([header, *map(str, cells)]).split("\n")
    width = max(map(cell_len, lines))
    table.add_column(escape(header), no_wrap=True, min_width=width, **look)


def fits(table: Table, width: int) -> bool:
    """Whether a terminal of this width shows the table without cutting a cell."""
    console = Console(width=width)
    unlimited = console.options.update(width=10_000)
    return Measurement.get(console, unlimited, table).minimum <= width


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
