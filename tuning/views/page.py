"""The report of a run: one page with its conclusion, figures and tables, also while it runs.

The page is a Jinja2 template whose every value is escaped. Its figures are Plotly's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from trainers.data.store import open_store
from trainers.errors import storage_failures
from tuning.log.folder import word_for
from tuning.log.paths import page_path
from tuning.log.records import trial_label
from tuning.results.budget import gpu_hours, num_ended
from tuning.results.rules import PROPOSED_WITH_OOD, RULES, choices, saw_ood
from tuning.run import Run
from tuning.views.changed_images import Changed
from tuning.views.confirmation_table import confirmation_table, model_table
from tuning.views.figures import Plots, optuna_figures
from tuning.views.formatting import format_hours, format_outcomes, format_percent, format_seconds
from tuning.views.leaderboard import trial_table
from tuning.views.result_table import ResultTable

MAX_NAMED = 3
"""Trials of a rule that are named in its row; if there are more, their number is given."""


def write_page(
    run: Run,
    *,
    changed: Sequence[Changed] | str = (),
) -> None:
    """Write the page of the trials so far into the run folder: one file of 5 MB.

    That of a running search loads itself anew every 30 s.

    Args:
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
    columns, rows = trial_table(run)
    found = run.conclusion
    again = found.confirmation
    model = model_table(again, run.models) if again else None
    page = environment.get_template("page.html.j2").render(
        title=run.name,
        about=_about(run),
        running=run.is_live,
        written=f"{datetime.now():%H:%M:%S}",
        script=Markup(get_plotlyjs()),
        figures=_figures(run),
        columns=columns,
        rows=rows,
        lines=found.beside_table,  # it has the figures of the model
        best=trial_label(found.best) if found.best else "",
        commands=found.commands(word_for(run.folder)),
        model=model,
        confirmed=confirmation_table(again) if again and again.seeds else None,
        rules=selection_table(run),
        changed=changed,
    )
    path = page_path(run.folder)
    with (
        storage_failures(path.parent, "cannot be written"),
        open_store(path.parent).write(path.name) as file,  # whole, for a browser that reads it
    ):
        file.write(page.encode())


def _about(run: Run) -> str:
    done = num_ended(run.records)
    text = f"{done} of {run.file.most_trials} trials of {run.file.trial.steps} steps done"
    text += f" ({outcomes})" if (outcomes := format_outcomes(run.records)) else ""
    text += f", fine-tuned on {run.file.trial.data.id_domain}"
    text += f", also evaluated on {', '.join(run.goal.ood_domains)}" if run.goal.ood_domains else ""
    seconds = sum(record.seconds or 0.0 for record in run.records)
    used = gpu_hours(run.records)
    cost = f"{format_hours(used)} GPU-hours" if used else format_seconds(seconds)
    text += f". Ended by {run.history.ended_by}" if run.history.ended_by else ""
    return f"{text}. All trainings together took {cost}." if cost else f"{text}."


def selection_table(run: Run) -> ResultTable | None:
    """One row per selection rule: its choice, the accuracies, and whether it used OOD data.

    None while there is no trial to choose.
    """
    found = choices(run.goal, run.records)
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
    return ResultTable(columns, rows, [PROPOSED_WITH_OOD] if saw_ood(run.goal) else [])


def _figures(run: Run) -> dict[str, Markup]:
    """The HTML of each figure that there are trials for, by its name."""
    figures = {"id_vs_ood": Plots(run).id_vs_ood()} if run.goal.ood_domains else {}
    figures |= optuna_figures(run)
    config = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"format": "svg"}}
    return {
        # Plotly writes `<`, `>` and `/` of every value as escapes.
        name: Markup(
            figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)
        )
        for name, figure in figures.items()
    }
