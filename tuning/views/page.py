"""The report of a run: one page with its answer, figures and tables, also while it runs.

The page is a Jinja2 template whose every value is escaped. Its figures are Plotly's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from trainers.errors import storage_failures
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.changed_images import Changed
from tuning.views.figures import Plots, importance_lacks
from tuning.views.formatting import (
    format_hours,
    format_metric,
    format_seconds,
    format_value,
    short_names,
)
from tuning.views.leaderboard import TrialRow, extra_metrics, trial_rows
from tuning.views.result_table import PlainTable

REPORT_FOLDER = "report"
"""In the run folder."""
REPORT_FILE = "index.html"
SCRIPT_FILE = "plotly.min.js"
REFRESH_SECONDS = 30
"""A page of a running search loads itself anew so often."""


def write_page(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    folder: Path,
    *,
    lines: Sequence[str] = (),
    commands: Sequence[str] = (),
    shown: Mapping[str, PlainTable] | None = None,
    folded: Mapping[str, PlainTable] | None = None,
    changed: Sequence[Changed] = (),
    running: bool = False,
) -> Path:
    """Write the page of the trials so far into a folder, and return its path.

    Args:
        lines: the answer, which is the first of them, and its limits.
        commands: to go on with, each with a comment.
        shown: tables below the commands, by title, such as the results of `confirm`.
        folded: tables near the end.
        changed: images of `changed_images`.
        running: the page loads itself anew, and Plotly from a file beside it; otherwise it is one
            file of 5 MB that can be sent.

    Raises:
        StorageFailed: the disk is full or fails.
    """
    environment = Environment(
        loader=PackageLoader("tuning.views", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        title=search.name,
        about=_about(search, records),
        lines=lines,
        commands=commands,
        refresh=REFRESH_SECONDS if running else None,
        script=None if running else Markup(get_plotlyjs()),
        script_file=SCRIPT_FILE,
        sections=list(_figures(search, records)),
        rows=list(_rows(search, records)),
        shown=shown or {},
        folded=folded or {},
        changed=changed,
    )
    with storage_failures(folder, "cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if running and not (folder / SCRIPT_FILE).is_file():
            _replace(folder / SCRIPT_FILE, get_plotlyjs())
        _replace(folder / REPORT_FILE, page)
        if not running:
            (folder / SCRIPT_FILE).unlink(missing_ok=True)
    return folder / REPORT_FILE


def _replace(path: Path, text: str) -> None:
    """Write a file in one piece, since a browser may read it at this moment."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def _about(search: SearchRecord, records: Sequence[TrialRecord]) -> str:
    trials = [record for record in records if record.kind == "trial"]
    outcomes = [record.outcome for record in trials]
    counted = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
    text = f"{len(trials)} of {search.budget_trials} trials of {search.total_steps} steps"
    text += f" ({counted})" if counted else ""
    domains = ", ".join(search.ood_domains)
    text += f", fine-tuned on {search.id_domain}"
    text += f", also evaluated on {domains}" if domains else ""
    seconds = sum(record.seconds or 0.0 for record in records)
    gpu_hours = sum(r.gpu_seconds(r.ended_at or 0.0) for r in records if r.ended_at) / 3600
    cost = f"{format_hours(gpu_hours)} GPU-hours" if gpu_hours else format_seconds(seconds)
    return f"{text}. All trainings together took {cost}." if cost else f"{text}."


def _figures(
    search: SearchRecord, records: Sequence[TrialRecord]
) -> Iterator[tuple[str, str, Markup]]:
    """Title, note and HTML of each figure, in the order of the page."""
    plots, lacks = Plots(search, records), importance_lacks(records)
    finished = [r for r in records if r.kind == "trial" and r.outcome == "finished"]
    wanted: list[tuple[str, str, Callable[[], Figure] | None]] = []
    if search.ood_domains:
        wanted.append(("ID against OOD accuracy", "", plots.id_vs_ood))
    wanted.append(("Table", "", None))
    if len(finished) > 1:
        wanted += [("Hyperparameters", "", plots.parallel), ("", "", plots.slices)]
    if lacks is None:
        note = "Share of the variation that each hyperparameter explains (fANOVA)."
        wanted += [("Importance", note, plots.importance), ("Contours", "", plots.contours)]
    elif finished:
        wanted.append(("Importance", lacks, None))
    wanted.append(("Curves", "", plots.curves))
    if search.ood_domains:
        wanted.append(("Domains", "", plots.domains))
    for title, note, draw in wanted:
        yield title, note, Markup("") if draw is None else _html(draw(), draw.__name__)


def _html(drawn: Figure, name: str) -> Markup:
    config = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"format": "svg"}}
    # Plotly writes `<`, `>` and `/` of every value as escapes.
    return Markup(
        drawn.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)
    )


def _rows(
    search: SearchRecord, records: Sequence[TrialRecord]
) -> Iterator[tuple[TrialRow, list[tuple[str, str, Any]]]]:
    """The rows of the table, with header, text and value to sort by of each cell."""
    trials = (record for record in records if record.kind == "trial")
    keys = list(dict.fromkeys(key for record in trials for key in record.params))
    short = dict(zip(keys, short_names(keys), strict=True))
    metrics = {ID_ACC: "ID", OOD_MEAN_ACC: "OOD", **{m: m for m in extra_metrics(search)}}
    later = {"line/a": "a", **{val_acc(domain): domain for domain in search.ood_domains}}
    for order, row in enumerate(trial_rows(search, records)):
        record = row.record
        cells: list[tuple[str, str, Any]] = [("#", str(row.rank or ""), order)]
        cells.append(("trial", row.label, record.number))
        for names, values, style in (
            (metrics, row.values, format_metric),
            (short, row.params, lambda key: format_value),
            (later, row.values, format_metric),
        ):
            for key, name in names.items():
                value = values.get(key)
                cells.append((name, "" if value is None else style(key)(value), value))
        if any(r.repetitions for r in records):
            cells.append(("seeds", row.seeds, 1 + len(record.repetitions)))
        if search.constraints:
            cells.append(("misses", f"{row.missed:.2g}" if row.missed else "", row.missed))
        cells.append(("outcome", row.outcome, record.outcome))
        cells.append(("time", format_seconds(record.seconds), record.seconds))
        yield row, cells
