"""The main figure as PNG and PDF, for papers and READMEs: ID against OOD accuracy.

It is made without pyplot: no global state changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from trainers.data.storage import open_store
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.ranking import best_trial
from tuning.runs.records import ZERO_SHOT, SearchRecord, TrialRecord, zero_shot_record
from tuning.views.formatting import trial_label
from tuning.views.lines import frontier, line_of

MAIN_FIGURE = "id_vs_ood"
"""Name of the files, without `.png` and `.pdf`."""
COLOUR_BY = "method.reg_weight"
BLUE, VERMILION, SOFT = "#0072B2", "#D55E00", "#5B616B"
_MARKERS = "osD^vP*h"


def write_main_figure(
    search: SearchRecord, records: Sequence[TrialRecord], folder: Path
) -> tuple[Path, Path]:
    """Write `id_vs_ood.png` and `id_vs_ood.pdf` into a folder, and return their paths."""
    # Otherwise a name with two `$` is read as a formula. Type 42 embeds fonts as publishers ask.
    settings: Any = {"text.parse_math": False, "pdf.fonttype": 42}
    paths = folder / f"{MAIN_FIGURE}.png", folder / f"{MAIN_FIGURE}.pdf"
    with matplotlib.rc_context(settings):
        drawn = main_figure(search, records)
        for path in paths:
            with open_store(folder).write(path.name) as file:
                # Without a date, the same trials give the same file.
                drawn.savefig(file, format=path.suffix[1:], dpi=160, metadata=_UNDATED[path.suffix])
    return paths


_UNDATED = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}


def main_figure(search: SearchRecord, records: Sequence[TrialRecord]) -> Figure:
    """Finished trials with their lines and the frontier over these; up and to the right is better.

    With several methods, each has a colour and marker; else the colour is the regulariser's weight.
    """
    drawn = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = drawn.add_subplot(
        xlabel=f"ID accuracy on {search.id_domain}, %",
        ylabel=f"OOD accuracy, mean of {len(search.ood_domains)}, %",
    )
    axes.set_title(f"{search.name}, validation splits", loc="left", fontsize=10)
    axes.grid(color="#ECEEF1")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    finished = [r for r in records if r.outcome == "finished" and _point(r)]
    trials = [record for record in finished if record.kind == "trial"]
    for record in finished:
        points = line_of(record)
        axes.plot([x for _, x, _ in points], [y for _, _, y in points], color=SOFT, linewidth=0.6,
                  alpha=0.5, zorder=1.5)  # fmt: skip
    if len(front := frontier(trials)) > 1:
        xs, ys = zip(*front, strict=True)
        axes.step(xs, ys, where="pre", color=SOFT, linewidth=0.9, zorder=2)
    methods = search.methods(trials)
    if len(methods) > 1:
        for index, method in enumerate(methods):
            group = [record for record in trials if search.method(record) == method]
            _draw(axes, group, f"C{index}", _MARKERS[index % len(_MARKERS)], method)
        axes.legend(frameon=False, fontsize=8)
    elif trials:
        weights = [r.params.get(COLOUR_BY) for r in trials]
        numbers = [float(w) for w in weights if isinstance(w, int | float)]
        if len(numbers) == len(trials) and max(numbers) > min(numbers):
            norm = LogNorm if min(numbers) > 0 else Normalize
            xs, ys = zip(*(_point(record) for record in trials), strict=True)
            shown = axes.scatter(xs, ys, c=numbers, norm=norm(min(numbers), max(numbers)), s=60,
                                 cmap="viridis", edgecolor="white", zorder=3)  # fmt: skip
            drawn.colorbar(shown, label="weight of the regulariser")
        else:
            _draw(axes, trials, BLUE, "o", None)
    marks = [(trial_label(search, r), r, "X") for r in finished if r.kind == "reference"]
    zero_shot = zero_shot_record(search.zero_shot)
    for label, record, marker in [*marks, (ZERO_SHOT, zero_shot, "*")]:
        if _point(record):
            _draw(axes, [record], "#22262B", marker, None)
            _name(axes, label, record, "#22262B")
    best = best_trial(search, records)
    if best in trials and best is not None:
        x, y = _point(best)
        axes.scatter(x, y, s=190, facecolor="none", edgecolor=VERMILION, linewidth=1.6, zorder=5)
        _name(axes, best.trial_id, best, VERMILION)
    return drawn


def _draw(
    axes: Axes, records: Sequence[TrialRecord], colour: str, marker: str, label: str | None
) -> None:
    xs, ys = zip(*(_point(record) for record in records), strict=True)
    axes.scatter(xs, ys, s=60, color=colour, marker=marker, edgecolor="white", label=label,
                 zorder=3)  # fmt: skip


def _name(axes: Axes, label: str, record: TrialRecord, colour: str) -> None:
    axes.annotate(label, _point(record), (7, 5), textcoords="offset points", color=colour,
                  fontsize=8, zorder=6)  # fmt: skip


def _point(record: TrialRecord) -> tuple[float, float]:
    """ID and OOD accuracy; empty, and so false, if one is missing."""
    values = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return () if None in values else (values[0] or 0.0, values[1] or 0.0)  # type: ignore[return-value]
