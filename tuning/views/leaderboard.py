"""The results of a search: leaderboard, best trial of each method, selection rules.

Every table states the split that trials were chosen on, because the validation accuracy of a chosen
trial is optimistic. Only `confirm` and `zero-shot` read the test splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from trainers.methods.registry import METHODS
from tuning.runs.ranking import (
    best_trial,
    misses,
    pareto_front,
    ranked,
    stronger_reference,
)
from tuning.runs.records import (
    AVERAGED,
    EVAL_IMAGES,
    METHOD_KEY,
    STEP,
    Outcome,
    SearchRecord,
    TrialRecord,
)
from tuning.views.formatting import (
    accuracy_margin,
    format_metric,
    format_params,
    format_percent,
    format_seconds,
    format_value,
    short_names,
    trial_label,
)
from tuning.views.methods_report import methods_table
from tuning.views.result_table import Column, ResultTable, Row, fit_table
from tuning.views.selection_report import selection_table
from tuning.views.tables.arrow import trial_row, zero_shot_row

FIRST_POINT = "°"
"""Mark of trials that the sampler did not propose."""
_OUTCOME = 100
"""The outcome is dropped after everything else that can be dropped."""
OUTCOME_STYLE = {
    "finished": "green",
    "running": "cyan",
    "pruned": "yellow",
    "stopped": "yellow",
    "failed": "red",
}


def report(
    search: SearchRecord, records: Sequence[TrialRecord], width: int | None = None
) -> RenderableType:
    """Leaderboard, methods (if the trials have several) and selection rules, for a terminal."""
    tables = (
        leaderboard(search, records),
        methods_table(search, records),
        selection_table(search, records),
    )
    parts = [part for t in tables if t is not None for part in (fit_table(t, width), "")]
    return Group(*parts[:-1])


def warning_of_reference(search: SearchRecord, records: Sequence[TrialRecord]) -> str | None:
    """One sentence if `stronger_reference` finds the zero-shot model or a reference."""
    stronger = stronger_reference(search, records)
    if stronger is None:
        return None
    best = best_trial(search, records)
    compared = []
    for metric in dict.fromkeys(objective.metric for objective in search.objectives):
        values = [record.last(metric) or 0.0 for record in (stronger, best) if record is not None]
        compared.append(f"{metric} = {values[0]:.4g} against {values[1]:.4g}")
    label, values_of_both = trial_label(search, stronger), ", ".join(compared)
    if best is not None and misses(search, records)[best.trial_id]:
        return f"{label} meets the constraints, and no trial does: {values_of_both} of the best."
    return f"No trial is better than {label}: {values_of_both} of the best."


def leaderboard(search: SearchRecord, records: Sequence[TrialRecord]) -> ResultTable:
    """All trials, best first, below the zero-shot model and plain fine-tuning."""
    order = ranked(search, records)
    references = [record for record in records if record.kind == "reference"]
    best = best_trial(search, records)
    missed = misses(search, records)
    several = len(search.objectives) > 1
    front = {r.trial_id for r in pareto_front(search, records)} if several else set()
    letters = {c.text: chr(ord("a") + index) for index, c in enumerate(search.constraints)}

    rows = [Row({**zero_shot_row(search), "outcome": None}, "dim", ends_section=not references)]
    for record in references:
        label = trial_label(search, record, "\n")
        values = {**trial_row(search, record), "trial_id": label}
        values["outcome"] = (record.outcome, record.step)
        last = record is references[-1]
        rows.append(Row(values, "dim", ends_section=last, trial=record.trial_id))
    for rank, record in enumerate(order, 1):
        finished = record.outcome == "finished"
        values = {
            **trial_row(search, record),
            "trial_id": record.trial_id + FIRST_POINT * record.is_first_point,
            "rank": (str(rank) if finished else "-") + "*" * (record.trial_id in front),
            "outcome": (record.outcome, record.step),
            METHOD_KEY: search.method(record),
            "parameters": record.params,
        }
        style = ""
        if finished and (amounts := missed[record.trial_id]):
            text, amount = max(amounts.items(), key=lambda item: item[1])
            values["misses"] = f"{amount:.2g}" + (f" {letters[text]}" if len(letters) > 1 else "")
            style = "dim"
        style = "bold green" if record is best else style
        rows.append(Row(values, style, trial=record.trial_id))

    def format_outcome(ended: tuple[Outcome, int]) -> Text:
        """The outcome, with the step if the trial did not do all of them."""
        outcome, step = ended
        early = 0 < step < search.total_steps
        return Text(f"{outcome} {step}" if early else outcome, OUTCOME_STYLE[outcome])

    columns = [
        Column("rank", "#"),
        Column("trial_id", "trial", left=True),
        *_param_columns(search, records),
        Column(ID_ACC, f"{search.id_domain}\n(ID)", format_percent, style="bold"),
        Column(OOD_MEAN_ACC, "OOD\nmean", format_percent, style="bold"),
    ]
    if any("line/a" in record.metrics for record in (*references, *order)):
        columns.append(Column("line/a", "a", format_value, drop=_OUTCOME - 1))
    for metric in dict.fromkeys(o.metric for o in search.objectives):
        if metric not in (ID_ACC, OOD_MEAN_ACC):  # the column that the table is sorted by
            columns.append(Column(metric, metric.replace("/", "/\n"), format_metric(metric)))
    for domain in search.ood_domains:
        columns.append(Column(val_acc(domain), domain, format_percent, drop=1, group="domains"))
    columns += [
        Column("step", "step", lambda step: f"{step}/{search.total_steps}", drop=4),
        Column("outcome", "outcome", format_outcome, drop=_OUTCOME, left=True),
        Column("seconds", "time", format_seconds, drop=3),
    ]
    if search.constraints:
        columns.append(Column("misses", "misses\nby"))

    notes = [search.selection, "Validation accuracy in percent, each trial at its last step."]
    notes = [*first_points_note(search, records), *notes]
    if any(record.is_first_point for record in order):
        notes.append(f"{FIRST_POINT} A first point: of the prior, given, or of a warm start.")
    notes += [margins] if (margins := margins_of(search)) else []
    if several:
        notes.append(
            "* On the Pareto front of the objectives. Ranked by Pareto layers, then by the "
            "distance to the best value of each objective, scaled to its range."
        )
    notes += notes_of_early_trials(search, (*references, *order))
    if len(search.constraints) > 1:
        named = [f"{letter}: {text}" for text, letter in letters.items()]
        notes.append(f"Constraints: {'; '.join(named)}.")
    finished_trials = [record for record in order if record.outcome == "finished"]
    if finished_trials and all(missed[record.trial_id] for record in finished_trials):
        notes.append(
            "No finished trial meets the constraints: the trial that misses them least is first."
        )
    failed = [record for record in (*references, *order) if record.outcome == "failed"]
    if failed:
        notes.append(f"{len(failed)} failed:")
        notes += [f"  {r.trial_id}: {r.error_line or 'no error recorded'}" for r in failed]
    warning = warning_of_reference(search, records)
    title = search.name if warning is None else f"{search.name}\n{warning}"
    return ResultTable(title, columns, rows, notes, "trials.parquet")


def first_points_note(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    """A sentence if no proposal of the sampler is better than the first points."""
    trials = [record for record in records if record.kind == "trial"]
    best = best_trial(search, records)
    if best is None or not best.is_first_point or len(search.objectives) > 1:
        return []
    if all(record.is_first_point for record in trials):
        return ["All trials are first points: the sampler has proposed none."]
    if not any(r.outcome == "finished" for r in trials if not r.is_first_point):
        return []
    method = METHODS.get(search.method(best) or "")

    def is_published(key: str) -> bool:
        """Whether the value is the default of the method, or the trial's own in other settings."""
        if not key.startswith("method."):
            return search.configured("trial", *key.split(".")) == best.params[key]
        field = method.model_fields.get(key.removeprefix("method.")) if method else None
        return field is not None and field.default == best.params[key]

    keys = best.params.keys() - {METHOD_KEY}
    is_setting = any(key.startswith("method.") for key in keys) and all(map(is_published, keys))
    which = "the published setting" if is_setting else "a first point"
    return [f"The best trial is {which}; no proposal was better."]


def notes_of_early_trials(search: SearchRecord, records: Iterable[TrialRecord]) -> list[str]:
    """Sentences about last reports that are not comparable with those of the last step."""
    points = [record.metrics for record in records]
    notes = []
    if any(point.get(AVERAGED) for point in points):
        notes.append("Trials that ended early: accuracy of their averaged weights.")
    if sample := sampled_images(search, points):
        notes.append(
            f"Trials before the last step: accuracy on {sample}, which may be some points off."
        )
    return notes


def margins_of(search: SearchRecord) -> str | None:
    """95 % interval of an accuracy on the ID validation split and on the smallest OOD one.

    None if the numbers of images are not recorded.
    """
    found = search.val_images
    if not all(found.get(domain) for domain in (search.id_domain, *search.ood_domains)):
        return None
    smallest = min(
        (found[domain] for domain in search.ood_domains), default=found[search.id_domain]
    )
    margins = []
    for images in dict.fromkeys((found[search.id_domain], smallest)):
        domains = ", ".join(domain for domain, number in found.items() if number == images)
        margins.append(f"± {accuracy_margin(50.0, images):.1f} on {images:,} images ({domains})")
    return f"95 % interval of an accuracy, in points at most: {', '.join(margins)}."


def sampled_images(search: SearchRecord, reports: Iterable[Mapping[str, float]]) -> str | None:
    """The sample that reports before the last step are measured on; None if it is all images."""
    sampled, whole = set[float](), set[float]()
    for point in reports:
        if EVAL_IMAGES in point:
            (sampled if point[STEP] < search.total_steps else whole).add(point[EVAL_IMAGES])
    if sampled and whole:
        number, total = min(sampled), max(whole)
        return f"{number:,.0f} of {total:,.0f} validation images" if number < total else None
    limit = search.configured("trial", "eval", "rung_images") if sampled else None
    return f"at most {limit:,} validation images of each domain" if limit else None


def _param_columns(search: SearchRecord, records: Sequence[TrialRecord]) -> Iterator[Column]:
    """One column per parameter; with several methods one per shared parameter, one for the rest."""
    keys = list(dict.fromkeys(key for record in records for key in record.params))
    shared, own = keys, list[str]()
    if len(search.methods(records)) > 1:
        trials = [record for record in records if record.kind == "trial"]
        shared = [key for key in keys if all(key in record.params for record in trials)]
        own = [key for key in keys if key not in shared and key != METHOD_KEY]
        shared = [key for key in shared if key != METHOD_KEY]
        yield Column(METHOD_KEY, "method", left=True)
    for index, (key, name) in enumerate(zip(shared, short_names(shared), strict=True)):
        header = name.replace("_", "_\n")
        yield Column(key, header, format_value, drop=6 + len(shared) - index)
    if own:

        def format_own(params: Mapping[str, Any]) -> str:
            return format_params(params, but=[METHOD_KEY, *shared])

        yield Column("parameters", "parameters", format_own, drop=2, left=True)
