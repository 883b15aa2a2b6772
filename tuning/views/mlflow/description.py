"""The description of a search, in Markdown, as MLflow shows it on the page of the parent run."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.confirmation.results import results_path
from tuning.runs.ranking import best_trial
from tuning.runs.records import ZERO_SHOT, SearchOutcome, SearchRecord, TrialRecord
from tuning.views.formatting import format_percent, format_value, trial_label
from tuning.views.leaderboard import margins_of, warning_of_reference
from tuning.views.methods_report import methods_table
from tuning.views.result_table import Column, ResultTable, Row, markdown
from tuning.views.selection_report import selection_table

_VERDICTS: dict[SearchOutcome, str] = {
    "finished": "The search is complete",
    "stopped": "The search was stopped by its user and can be resumed",
    "failed": "The search failed",
}


def describe(
    search: SearchRecord,
    records: Sequence[TrialRecord] = (),
    outcome: SearchOutcome | None = None,
    figure: str = "",
) -> str:
    """What is searched, and once it ended (`outcome`), what was found and how it was chosen.

    MLflow 3.17 hides all but the first 150 pixels, so the best trial comes first, after a
    reference that beats it.

    Args:
        figure: address of an image of ID against OOD accuracy, to be shown below the accuracies.
    """
    best = best_trial(search, records) if outcome else None
    warning = warning_of_reference(search, records) if outcome else None
    lines = [f"**{warning}**", ""] if warning else []
    if best is not None:
        values = ", ".join(f"`{k}` {format_value(v)}" for k, v in best.params.items())
        cut_short = "" if best.outcome == "finished" else f" ({best.outcome} at step {best.step})"
        lines += [f"**Best: {best.trial_id}**{cut_short} with {values}.", ""]
    lines += _accuracies(search, records, best)
    lines += ["", f"![ID against OOD accuracy]({figure})"] * bool(figure)
    domains = ", ".join(search.ood_domains) or "no other domain"
    lines += [
        "",
        f"Up to {search.budget_trials} trials of {search.total_steps} steps, fine-tuned on "
        f"**{search.id_domain}**, also evaluated on {domains}. {search.selection} "
        "The search does not read the test splits.",
    ]
    if best is not None:
        for table in (methods_table(search, records), selection_table(search, records)):
            lines += ["", *markdown(table)] if table is not None else []
    if outcome:
        trials = [r for r in records if r.kind == "trial"]
        counts = {o: sum(r.outcome == o for r in trials) for o in ("finished", "pruned", "failed")}
        counted = [f"{len(trials)} trials", *(f"{n} {name}" for name, n in counts.items() if n)]
        lines += ["", f"{_VERDICTS[outcome]}: {', '.join(counted)}."]
        failed = [r for r in records if r.outcome == "failed"]
        lines += [""] * bool(failed)
        lines += [f"- {r.trial_id} failed: `{r.error_line[:200]}`" for r in failed]
        if best is not None:
            where = f"`lipsum-tune confirm {search.run_folder}`"
            if results_path(search.run_folder).is_file():
                where = "see the report, the artifact `index.html`"
            lines += ["", f"Accuracy on the test splits, over fresh seeds: {where}."]
    else:
        lines += ["", "Running. Each trial is a run below this one; filter them by the tags `kind` "
                  "and `outcome`."]  # fmt: skip
    lines += ["", margins] if (margins := margins_of(search)) else []
    return "\n".join(lines)


def _accuracies(
    search: SearchRecord, records: Sequence[TrialRecord], best: TrialRecord | None
) -> list[str]:
    columns = [
        Column("name", "validation accuracy, %", left=True),
        Column(ID_ACC, f"{search.id_domain} (ID)", format_percent),
        Column(OOD_MEAN_ACC, "OOD mean", format_percent),
        *(Column(val_acc(domain), domain, format_percent) for domain in search.ood_domains),
    ]
    references = [r for r in records if r.kind == "reference" and r.outcome == "finished"]
    rows = [] if best is None else [Row({**best.metrics, "name": f"**{best.trial_id}**"})]
    rows += [Row({**r.metrics, "name": trial_label(search, r)}) for r in references]
    rows.append(Row({**search.zero_shot, "name": ZERO_SHOT}))
    return markdown(ResultTable("", columns, rows))
