"""A table of results as one object, for the terminal (rich) and as text for the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Cell: TypeAlias = str | Text
"""Text of a cell. A `Text` has styles; a `str` is never read as markup."""


@dataclass(frozen=True)
class Column:
    """One column of a table; the first one has names and may wrap, the others numbers."""

    key: str
    """Key of the cell in each row."""
    header: str
    """May have a line break."""
    drop: int = 0
    """Rank of a column that is left out if the table is too wide: those with the lowest number
    first, those with the same number together; 0: never."""
    group: str = ""
    """Name in the note about columns that were left out; the header if empty."""


@dataclass(frozen=True)
class Row:
    """One row: the cells by the keys of the columns; a missing one is empty."""

    values: Mapping[str, Cell]
    style: str = ""


@dataclass(frozen=True)
class ResultTable:
    """A title, columns, rows, and sentences that explain them."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    file: str = ""
    """File of the run folder that also has the columns that were left out."""


@dataclass(frozen=True)
class PlainTable:
    """Text in rows and columns, with sentences below it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def fit_table(table: ResultTable, width: int | None = None) -> Table:
    """The table for a terminal of this width, with a note about the columns that do not fit."""
    console = Console(width=width)
    for level in sorted({0, *(column.drop for column in table.columns)}):
        columns = [column for column in table.columns if not 0 < column.drop <= level]
        rendered = Table(
            title=escape(table.title),
            caption_justify="left",
            header_style="bold",
            box=SIMPLE_HEAD,  # the narrowest, so that 80 columns hold as much as possible
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        for index, column in enumerate(columns):
            name = escape(column.header)
            if index == 0:
                rendered.add_column(name, min_width=20, overflow="fold")
            else:
                rendered.add_column(name, justify="right", no_wrap=True)
        for row in table.rows:
            cells = [_text(row.values.get(column.key, "")) for column in columns]
            rendered.add_row(*cells, style=row.style)
        unlimited = console.options.update(width=10_000)
        if width is None or Measurement.get(console, unlimited, rendered).minimum <= width:
            break
    notes = list(table.notes)
    if left_out := [column for column in table.columns if column not in columns]:
        names = dict.fromkeys(column.group or _one_line(column.header) for column in left_out)
        see = f"; see `lipsum-tune report --open` or {table.file}" if table.file else ""
        notes.append(f"Columns left out to fit the width: {', '.join(names)}{see}.")
    rendered.caption = escape("\n".join(notes)) or None
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


def plain(table: ResultTable) -> PlainTable:
    """All columns as text, for the page."""
    keys = [column.key for column in table.columns]
    rows = [[_text(row.values.get(key, "")).plain for key in keys] for row in table.rows]
    return PlainTable([_one_line(column.header) for column in table.columns], rows, table.notes)


def _one_line(text: str) -> str:
    """Without line breaks; those after `_` and `/` are within a name."""
    return re.sub(r"(?<=[_/])\n", "", text).replace("\n", " ")


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
