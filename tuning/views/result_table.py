"""A table of results as one object, for the terminal (rich) and as text for the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Cell: TypeAlias = str | Text
"""Text of a cell. A `Text` has styles; a `str` is never read as markup."""


@dataclass(frozen=True)
class Column:
    """One column: where its values come from, how they are written, when it is left out."""

    key: str
    """Key of the value in each row."""
    header: str
    """May have a line break."""
    format: Callable[[Any], Cell] = str
    """Called with every value that is not None."""
    drop: int = 0
    """Rank of a column that is left out if the table is too wide: those with the lowest number
    first, those with the same number together; 0: never."""
    group: str = ""
    """Name in the note about columns that were left out; the header if empty."""
    left: bool = False
    """Align to the left instead of the right."""
    style: str = ""
    min_width: int = 0
    """If set, text may take several lines of at least `min_width` characters; the column gets the
    width that the others leave (at most one such column per table). Otherwise text never wraps."""


@dataclass(frozen=True)
class Row:
    """One row: the values by the keys of the columns; a missing value or None is an empty cell."""

    values: Mapping[str, Any]
    style: str = ""
    ends_section: bool = False
    """Draw a line below the row."""


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
    columns, notes, left_out = list(table.columns), list(table.notes), list[Column]()

    def room() -> int:
        """Characters that are left if no cell is cut."""
        needed = 0
        for column in columns:
            texts = [column.header, *(_cell(column, row).plain for row in table.rows)]
            longest = max(cell_len(line) for text in texts for line in text.split("\n"))
            needed += (column.min_width or longest) + 2  # with its border
        return (width or needed) - 1 - needed

    while width and room() < 0 and (levels := [c.drop for c in columns if c.drop]):
        left_out += [column for column in columns if column.drop == min(levels)]
        columns = [column for column in columns if column not in left_out]
    if left_out:
        names = dict.fromkeys(c.group or _one_line(c.header) for c in left_out)
        see = f"; see `lipsum-tune report --open` or {table.file}" if table.file else ""
        notes.append(f"Columns left out to fit the width: {', '.join(names)}{see}.")
    caption = escape("\n".join(notes)) or None
    rendered = Table(
        title=escape(table.title),
        caption=caption,
        caption_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,  # the narrowest, so that 80 columns hold as much as possible
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        wraps = column.min_width > 0
        rendered.add_column(
            escape(column.header),
            justify="left" if column.left else "right",
            style=column.style,
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
            max_width=column.min_width + max(0, room()) if wraps and width else None,
        )
    for row in table.rows:
        cells = [_cell(column, row) for column in columns]
        rendered.add_row(*cells, style=row.style, end_section=row.ends_section)
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
    rows = [[_cell(column, row).plain for column in table.columns] for row in table.rows]
    return PlainTable([_one_line(c.header) for c in table.columns], rows, table.notes)


def _one_line(text: str) -> str:
    """Without line breaks; those after `_` and `/` are within a name."""
    return re.sub(r"(?<=[_/])\n", "", text).replace("\n", " ")


def _cell(column: Column, row: Row) -> Text:
    value = row.values.get(column.key)
    cell = "" if value is None else column.format(value)
    return cell if isinstance(cell, Text) else Text(cell)
