"""The zero-shot accuracies as a table, a verdict, and the usual causes of a difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tuning.views.result_table import Cell, ResultTable, borderless_table, fit_table
from tuning.zero_shot.duplicates import SHARE_FOUND, NearDuplicates
from tuning.zero_shot.evaluate import Row

_CAUSES = """\
Off by more than sampling (95 %) and rounding allow: {domains}. Usual causes:
- all domains a few points low: class names or templates (trial.data.suite), an activation that does
  not belong to the weights (ViT-B-16-quickgelu for `openai`), or preprocessing
  (trial.data.crop_pct, small or cropped images)
- one domain far off: its order of classes (DomainNet's lists, ImageNet-V2's numbered folders), a
  mask of other classes (-R, -A), or a class_map
- one or two points: other images than those of the published accuracy (images split off for
  validation, --split), or another crop"""


def zero_shot_table(rows: Sequence[Row], *, title: str, id_domain: str) -> Table:
    """One row per domain, then the mean over the OOD domains.

    With expected accuracies, they replace NLL and ECE, so that the table fits 80 columns.
    """
    compared = any(row.expected is not None for row in rows)
    others = ["expected", "off by", ""] if compared else ["NLL", "ECE, %"]
    columns = ["", "images", "classes", "acc, %", *others]
    lines: list[list[Cell]] = []
    for row in rows:
        name = f"{row.domain} (ID)" if row.domain == id_domain else row.domain
        acc = f"{row.acc:.2f} ± {row.error:.2f}"
        lines.append([name, f"{row.images:,}", f"{row.classes:,}", acc])
        if not compared:
            lines[-1] += [f"{row.nll:.3f}", f"{row.ece:.2f}"]
        elif row.expected is not None:
            verdict = Text("agrees", "green") if row.agrees else Text("off", "bold red")
            lines[-1] += [f"{row.expected:.2f}", f"{row.acc - row.expected:+.2f}", verdict]
    shifts = [row for row in rows if row.domain != id_domain]
    if len(shifts) > 1:
        acc = fmean(row.acc for row in shifts)
        lines.append(["mean OOD", "", "", f"{acc:.2f}"])
        known = [row.expected for row in shifts if row.expected is not None]
        if len(known) == len(shifts):  # means over different domains are not comparable
            lines[-1] += [f"{fmean(known):.2f}", f"{acc - fmean(known):+.2f}"]
    whole = [[*line, *[""] * (len(columns) - len(line))] for line in lines]
    return fit_table(ResultTable(columns, whole, title=title))


def causes(rows: Sequence[Row]) -> str | None:
    """The usual causes of a difference; None if no domain is off."""
    off = [row.domain for row in rows if row.agrees is False]
    return _CAUSES.format(domains=", ".join(off)) if off else None


def not_compared(rows: Sequence[Row]) -> str | None:
    """Domains without an expected accuracy; None if all have one, or none has."""
    left = [row.domain for row in rows if row.expected is None]
    return f"Not compared: {', '.join(left)}." if 0 < len(left) < len(rows) else None


def duplicates_table(found: NearDuplicates) -> RenderableType:
    """Number of near duplicates by pair of splits, and what counts as one."""
    table = borderless_table("images of", "nearly the same in", "number", "of", text=(0, 1))
    for (first, second), number in Counter(pair[:2] for pair in found.pairs).items():
        table.add_row(escape(second), escape(first), f"{number:,}", f"{found.images[second]:,}")
    threshold = (
        f"Counted if the cosine of the features is at least {found.threshold:.4f}, which "
        f"{SHARE_FOUND:.0%} of resized and recompressed copies of these images reach. "
        "near_duplicates.csv lists the pairs; nothing was removed."
    )
    none = Text("No near duplicates between splits.")
    return Group(table if table.row_count else none, Text(threshold))
