"""The report of a run: one page with its conclusion, figures and tables, also while it runs.

The page is a Jinja2 template whose every value is escaped. Its figures are Plotly's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from trainers.data.store import open_store
from trainers.errors import storage_failures
from tuning.runs.conclusion import conclusion
from tuning.runs.model import measured_in_words, models_tested
from tuning.runs.records import SearchRecord, TrialRecord, trial_label
from tuning.runs.rules import PROPOSED_WITH_OOD, RULES, choices
from tuning.runs.run_folder import word_for
from tuning.views.changed_images import Changed
from tuning.views.confirmation_table import confirmation_table, model_table
from tuning.views.figures import Plots, optuna_figures
from tuning.views.formatting import format_hours, format_outcomes, format_percent, format_seconds
from tuning.views.leaderboard import trial_table
from tuning.views.result_table import ResultTable

REPORT_FOLDER = "report"
"""In the run folder."""
REPORT_FILE = "index.html"
MAX_NAMED = 3
"""Trials of a rule that are named in its row; if there are more, their number is given."""


def write_page(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    *,
    running: bool = False,
    changed: Sequence[Changed] | str = (),
) -> None:
    """Write the page of the trials so far into the run folder: one file of 5 MB.

    Args:
        running: the page loads itself anew every 30 s.
        changed: images that became right or wrong, or why these are not known.

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
    found = conclusion(search, records)
    again = found.confirmation
    models = models_tested(search.run_folder) if again else ()
    # Its table has these figures, and the first of the lines what it is made of.
    tabled = measured_in_words(again, models) if again and models else []
    model = model_table(again, models) if again else None
    page = environment.get_template("page.html.j2").render(
        title=search.name,
        about=_about(search, records),
        running=running,
        written=f"{datetime.now():%H:%M:%S}",
        script=Markup(get_plotlyjs()),
        figures=_figures(search, records),
        columns=columns,
        rows=rows,
        lines=[line for line in found.lines if line not in tabled],
        best=trial_label(found.best) if found.best else "",
        commands=found.commands(word_for(search.run_folder)),
        model=model and replace(model, notes=()),
        confirmed=confirmation_table(again) if again and again.seeds else None,
        rules=selection_table(search, records),
        changed=changed,
    )
    folder = search.run_folder / REPORT_FOLDER
    with (
        storage_failures(folder, "cannot be written"),
        open_store(folder).write(REPORT_FILE) as file,  # whole, for a browser that reads it
    ):
        file.write(page.encode())


def _about(search: SearchRecord, records: Sequence[TrialRecord]) -> str:
    done = sum(record.kind != "reference" and record.is_final for record in records)
    text = f"{done} of {search.budget_trials} trials of {search.total_steps} steps done"
    text += f" ({outcomes})" if (outcomes := format_outcomes(records)) else ""
    text += f", fine-tuned on {search.id_domain}"
    text += f", also evaluated on {', '.join(search.ood_domains)}" if search.ood_domains else ""
    seconds = sum(record.seconds or 0.0 for record in records)
    gpu_hours = sum(r.gpu_seconds(r.ended_at or 0.0) for r in records if r.ended_at) / 3600
    cost = f"{format_hours(gpu_hours)} GPU-hours" if gpu_hours else format_seconds(seconds)
    text += f". Ended by {search.ended_by}" if search.ended_by else ""
    return f"{text}. All trainings together took {cost}." if cost else f"{text}."


def selection_table(search: SearchRecord, records: Sequence[TrialRecord]) -> ResultTable | None:
    """One row per selection rule: its choice, the accuracies, and whether it used OOD data.

    None while there is no trial to choose.
    """
    found = choices(search, records)
    if not any(choice.trials for choice in found):
        return None
    rows = []
    for choice in found:
        names = [trial.trial_id for trial in choice.trials]
        trials = ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names)} trials"
        accuracies = [format_percent(choice.id_acc), format_percent(choice.ood_acc)]
        sees = "yes" if choice.looks_at_ood else "no"
        rows.append([choice.rule, trials, *accuracies, sees, RULES[choice.rule]])
    columns = ["rule", "trials", "ID", "OOD", "sees OOD", "chooses"]
    return ResultTable(columns, rows, [PROPOSED_WITH_OOD] if search.sees_ood else [])


def _figures(search: SearchRecord, records: Sequence[TrialRecord]) -> dict[str, Markup]:
    """The HTML of each figure that there are trials for, by its name."""
    figures = {"id_vs_ood": Plots(search, records).id_vs_ood()} if search.ood_domains else {}
    figures |= optuna_figures(search, records)
    config = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"format": "svg"}}
    return {
        # Plotly writes `<`, `>` and `/` of every value as escapes.
        name: Markup(
            figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)
        )
        for name, figure in figures.items()
    }
