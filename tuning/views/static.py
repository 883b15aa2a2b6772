"""The main figure as PNG and PDF, for papers and READMEs: ID against OOD accuracy.

It is made without pyplot: no global state changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from trainers.data.store import open_store
from tuning.runs.ranking import best_finished, references
from tuning.runs.records import ZERO_SHOT, SearchRecord, TrialRecord, trial_label
from tuning.views.lines import accs_of, frontier, line_of

MAIN_FIGURE = "id_vs_ood"
"""Name of the files, without `.png` and `.pdf`."""
BLUE, VERMILION, SOFT = "#0072B2", "#D55E00", "#5B616B"
_MARKERS = "osD^vP*h"


def write_main_figure(
    search: SearchRecord, records: Sequence[TrialRecord], folder: Path
) -> tuple[Path, Path]:
    """Write `id_vs_ood.png` and `id_vs_ood.pdf` into a folder, and return their paths."""
    paths = folder / f"{MAIN_FIGURE}.png", folder / f"{MAIN_FIGURE}.pdf"
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # it embeds fonts as publishers ask
        drawn = main_figure(search, records)
        for path in paths:
            with open_store(folder).write(path.name) as file:
                # Without a date, the same trials give the same file.
                drawn.savefig(file, format=path.suffix[1:], dpi=160, metadata=_UNDATED[path.suffix])
    return paths


_UNDATED = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}


def main_figure(search: SearchRecord, records: Sequence[TrialRecord]) -> Figure:
    """Finished trials with their frontier and lines; up and to the right is better.

    With several methods, each has a colour and marker; else the colour is the regulariser's weight.
    """
    drawn = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = drawn.add_subplot(
        # Between two `$`, a name would be a formula.
        xlabel=f"ID accuracy on {search.id_domain}, %".replace("$", r"\$"),
        ylabel=f"OOD accuracy, mean of {len(search.ood_domains)}, %",
    )
    axes.set_title(f"{search.name}, validation splits", loc="left", fontsize=10)
    axes.grid(color="#ECEEF1")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    finished = [r for r in records if r.outcome == "finished" and accs_of(r)]
    trials = [record for record in finished if record.kind == "trial"]
    thin: dict[str, Any] = {"color": SOFT, "linewidth": 0.8}
    for record in finished:
        points = line_of(record)
        axes.plot([x for _, x, _ in points], [y for _, _, y in points], alpha=0.5, **thin)
    if len(front := frontier(trials)) > 1:
        axes.step(*zip(*front, strict=True), where="pre", **thin)
    methods = search.methods(trials)
    weights = [r.params.get("method.reg_weight") for r in trials]
    numbers = [float(w) for w in weights if isinstance(w, int | float)]
    if len(methods) > 1:
        for index, method in enumerate(methods):
            group = [record for record in trials if search.method(record) == method]
            _draw(axes, group, method, color=f"C{index}", marker=_MARKERS[index % len(_MARKERS)])
        axes.legend(frameon=False, fontsize=8)
    elif len(numbers) == len(trials) and len({*numbers}) > 1:
        norm = LogNorm() if min(numbers) > 0 else Normalize()
        shown = _draw(axes, trials, c=numbers, norm=norm)
        drawn.colorbar(shown, label="weight of the regulariser")
    elif trials:
        _draw(axes, trials, color=BLUE)
    for record in references(search, records):
        if accs_of(record):
            marker = "*" if record.trial_id == ZERO_SHOT else "X"
            _draw(axes, [record], color="#22262B", marker=marker)
            _name(axes, trial_label(record), record, "#22262B")
    best = best_finished(search, records)
    if best in trials and best is not None:
        _draw(axes, [best], s=190, facecolor="none", edgecolor=VERMILION, linewidth=1.6, zorder=5)
        _name(axes, best.trial_id, best, VERMILION)
    return drawn


def _draw(
    axes: Axes, records: Sequence[TrialRecord], label: str | None = None, **look: Any
) -> PathCollection:
    xs, ys = zip(*(accs_of(record) or (None, None) for record in records), strict=True)
    settings = {"s": 60, "edgecolor": "white", "zorder": 3, **look}
    return axes.scatter(xs, ys, label=label, **settings)


def _name(axes: Axes, label: str, record: TrialRecord, colour: str) -> None:
    axes.annotate(label, accs_of(record) or (0.0, 0.0), (7, 5), textcoords="offset points",
                  color=colour, fontsize=8, zorder=6)  # fmt: skip
