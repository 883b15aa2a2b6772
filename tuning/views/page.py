"""The report of a run: one page with its answer, figures and tables, also while it runs.

The page is a Jinja2 template whose every value is escaped. Its figures are Plotly's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from trainers.data.storage import open_store
from trainers.errors import storage_failures
from tuning.runs.ranking import finished_trials
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.figures import Plots, importance_lacks
from tuning.views.formatting import format_hours, format_outcomes, format_seconds
from tuning.views.leaderboard import trial_table
from tuning.views.lines import learning_rate_hint

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
    running: bool = False,
    **content: Any,
) -> Path:
    """Write the page of the trials so far into a folder, and return its path.

    Args:
        running: the page loads itself anew, and Plotly from a file beside it; otherwise it is one
            file of 5 MB that can be sent.
        content: all optional: `lines`, the answer first, then its limits; `commands` to go on
            with; tables by title, `shown` at the top or `folded` near the end; `changed` images.

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
    columns, rows = trial_table(search, records)
    hints = [learning_rate_hint(search, r) for r in records if r.kind == "reference"]
    page = environment.get_template("page.html.j2").render(
        title=search.name,
        about=_about(search, records),
        refresh=REFRESH_SECONDS if running else None,
        written=f"{datetime.now():%H:%M:%S}",
        hints=[hint for hint in (search.damage, *hints) if hint],
        script=None if running else Markup(get_plotlyjs()),
        script_file=SCRIPT_FILE,
        figures=_figures(search, records),
        importance_lacks=importance_lacks(records),
        columns=columns,
        rows=rows,
        **{"lines": (), "commands": (), "shown": {}, "folded": {}, "changed": (), **content},
    )
    files = {REPORT_FILE: page}
    if running and not (folder / SCRIPT_FILE).is_file():
        files[SCRIPT_FILE] = get_plotlyjs()
    with storage_failures(folder, "cannot be written"):
        for name, text in files.items():
            with open_store(folder).write(name) as file:  # whole, for a browser that reads it
                file.write(text.encode())
        if not running:
            (folder / SCRIPT_FILE).unlink(missing_ok=True)
    return folder / REPORT_FILE


def _about(search: SearchRecord, records: Sequence[TrialRecord]) -> str:
    # Repeats are of the budget.
    done = sum(record.kind != "reference" and record.is_final for record in records)
    text = f"{done} of {search.budget_trials} trials of {search.total_steps} steps done"
    text += f" ({outcomes})" if (outcomes := format_outcomes(records)) else ""
    text += f", fine-tuned on {search.id_domain}"
    text += f", also evaluated on {', '.join(search.ood_domains)}" if search.ood_domains else ""
    seconds = sum(record.seconds or 0.0 for record in records)
    gpu_hours = sum(r.gpu_seconds(r.ended_at or 0.0) for r in records if r.ended_at) / 3600
    cost = f"{format_hours(gpu_hours)} GPU-hours" if gpu_hours else format_seconds(seconds)
    return f"{text}. All trainings together took {cost}." if cost else f"{text}."


def _figures(search: SearchRecord, records: Sequence[TrialRecord]) -> dict[str, Markup]:
    """The HTML of each figure that there are trials for, by the name of its method of `Plots`."""
    plots = Plots(search, records)
    wanted = [plots.curves] if any(len(record.curve) > 1 for record in records) else []
    wanted += [plots.id_vs_ood, plots.domains] if search.ood_domains else []
    wanted += [plots.parallel, plots.slices] if len(finished_trials(records)) > 1 else []
    wanted += [plots.importance, plots.contours] if importance_lacks(records) is None else []
    config = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"format": "svg"}}
    return {
        # Plotly writes `<`, `>` and `/` of every value as escapes.
        draw.__name__: Markup(
            draw().to_html(
                full_html=False, include_plotlyjs=False, config=config, div_id=draw.__name__
            )
        )
        for draw in wanted
    }
