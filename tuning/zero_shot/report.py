"""The zero-shot row for people: a table, a verdict, and what is usually behind a difference."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from tuning.zero_shot.evaluate import Row

_CAUSES = """\
Off by more than sampling (95 %) and rounding allow: {domains}. What is usually behind it:
- all domains a few points low: class names or templates (data.suite), an activation that is not the
  weights' own (ViT-B-16-quickgelu for `openai`), or preprocessing (data.crop_pct, small or cropped
  images)
- one domain far off: its order of classes (DomainNet's lists, ImageNet-V2's numbered folders), a
  mask of other classes (-R, -A), or a class_map
- one or two points: other images than the published figure's (--deduplicate, a part carved for
  validation, --split), or another crop"""


def zero_shot_table(rows: Sequence[Row], *, title: str, id_domain: str) -> Table:
    """A line a domain, then the mean over OOD domains.

    Where accuracies are compared, they are all there is: it fits 80 columns, names of 20 included.
    """
    compared = any(row.expected is not None for row in rows)
    shown = Table(
        title=escape(title), title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    shown.add_column("", overflow="fold")  # the only one that may take a second line
    others = ["expected", "off by", ""] if compared else ["NLL", "ECE, %"]
    for header in ["images", "classes", "acc, %", *others]:
        shown.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.domain} (ID)" if row.domain == id_domain else row.domain
        cells = [
            escape(name), f"{row.images:,}", f"{row.classes:,}",
            f"{row.acc:.2f} ± {row.error:.2f}",
        ]  # fmt: skip
        shown.add_row(
            *cells, *(_compared(row) if compared else (f"{row.nll:.3f}", f"{row.ece:.2f}"))
        )
    shifts = [row for row in rows if row.domain != id_domain]
    if len(shifts) > 1:
        shown.add_section()
        shown.add_row(*_mean(shifts, compared))
    return shown


def causes(rows: Sequence[Row]) -> str | None:
    """What to look at where a domain is off; None where none is."""
    off = [row.domain for row in rows if row.agrees is False]
    return _CAUSES.format(domains=", ".join(off)) if off else None


def not_compared(rows: Sequence[Row]) -> str | None:
    """Which domains have no figure beside them; None where all have one, or none has."""
    left = [row.domain for row in rows if row.expected is None]
    return f"Not compared: {', '.join(left)}." if 0 < len(left) < len(rows) else None


def _compared(row: Row) -> tuple[str, str, str]:
    if row.expected is None or row.difference is None:
        return "", "", ""
    verdict = "[green]agrees[/]" if row.agrees else "[bold red]off[/]"
    return f"{row.expected:.2f}", f"{row.difference:+.2f}", verdict


def _mean(shifts: Sequence[Row], compared: bool) -> list[str]:
    acc = sum(row.acc for row in shifts) / len(shifts)
    cells = ["mean OOD", "", "", f"{acc:.2f}"]
    known = [row.expected for row in shifts if row.expected is not None]
    if not compared or len(known) < len(shifts):  # means over other domains are never compared
        return cells
    expected = sum(known) / len(known)
    return [*cells, f"{expected:.2f}", f"{acc - expected:+.2f}", ""]
