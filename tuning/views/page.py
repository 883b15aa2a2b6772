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
from tuning.runs.ranking import best_trial, misses, ranked
from tuning.runs.records import METHOD_KEY, SearchRecord, TrialRecord, zero_shot_record
from tuning.views.changed_images import Changed
from tuning.views.figures import Plots, importance_lacks
from tuning.views.formatting import (
    format_hours,
    format_metric,
    format_seconds,
    format_value,
    short_names,
    trial_label,
)
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
        columns=_columns(search, records),
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


def _columns(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    keys = list(dict.fromkeys(key for record in records for key in record.params))
    names = ["#", "trial", "ID", "OOD", *_objectives(search), *short_names(keys), "a"]
    names += [*search.ood_domains, *(["misses"] if search.constraints else [])]
    return [*names, "outcome", "time"]


def _objectives(search: SearchRecord) -> list[str]:
    metrics = dict.fromkeys(objective.metric for objective in search.objectives)
    return [metric for metric in metrics if metric not in (ID_ACC, OOD_MEAN_ACC)]


def _rows(search: SearchRecord, records: Sequence[TrialRecord]) -> Iterator[dict[str, Any]]:
    """A row of the table: its trial, style, and cells as (text, value to sort by)."""
    keys = list(dict.fromkeys(key for record in records for key in record.params))
    missed, best = misses(search, records), best_trial(search, records)
    references = [record for record in records if record.kind == "reference"]
    zero_shot = zero_shot_record(search.zero_shot)
    ordered = [zero_shot, *references, *ranked(search, records)]
    for rank, record in enumerate(ordered, -len(references)):
        is_trial, is_done = record.kind == "trial", record.outcome == "finished"
        params: Mapping[str, Any] = {METHOD_KEY: search.method(record), **record.params}
        if not is_trial:
            params = search.reference_params if record is not zero_shot else {}
        cells: list[tuple[str, Any]] = [(str(rank) if is_trial and is_done else "", rank)]
        cells.append((trial_label(search, record), record.number))

        def measured(*metrics: str, record: TrialRecord = record) -> list[tuple[str, Any]]:
            """Cells of metrics, which are empty for a trial that ended at another step."""
            values = [record.last(m) if record.outcome == "finished" else None for m in metrics]
            return [
                ("" if value is None else format_metric(metric)(value), value)
                for metric, value in zip(metrics, values, strict=True)
            ]

        cells += measured(ID_ACC, OOD_MEAN_ACC, *_objectives(search))
        for key in keys:
            value = params.get(key)
            cells.append(("" if value is None else format_value(value), value))
        cells += measured("line/a", *(val_acc(domain) for domain in search.ood_domains))
        if search.constraints:
            short = sum(missed.get(record.trial_id, {}).values()) if is_done else 0.0
            cells.append((f"{short:.2g}" if short else "", short))
        step = "" if is_done or not record.step else f" at {record.step}"
        cells.append((record.outcome + step if record is not zero_shot else "", record.outcome))
        cells.append((format_seconds(record.seconds), record.seconds))
        yield {
            "trial": record.trial_id,
            "is_best": best is not None and is_done and record.trial_id == best.trial_id,
            "is_trial": is_trial,
            "error": record.error_line,
            "cells": cells,
        }
