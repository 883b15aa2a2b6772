"""Tables of a confirmation: test accuracies, and differences to fine-tuning and zero-shot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.results import END, FT, SPLIT, Configuration, Confirmation
from tuning.confirmation.statistics import Estimate
from tuning.runs.records import METHOD_KEY, SECONDS, ZERO_SHOT
from tuning.selection.rules import PROPOSED_WITH_OOD
from tuning.views.formatting import (
    format_difference,
    format_mean,
    format_params,
    format_percent,
    format_seconds,
    untuned_label,
)
from tuning.views.result_table import Cell, Column, ResultTable, Row, fit_table

_ID_ACC: Final = str(MetricKey(SPLIT, ID, "acc"))
_OOD_MEAN_ACC: Final = str(MetricKey(SPLIT, MEAN_OOD, "acc"))
_ID_ECE: Final = str(MetricKey(SPLIT, ID, "ece"))
_OOD_MEAN_ECE: Final = str(MetricKey(SPLIT, MEAN_OOD, "ece"))


def report(confirmation: Confirmation, width: int | None = None) -> RenderableType:
    """The table of methods, if several were confirmed, above that of all configurations."""
    whole = fit_table(confirmation_table(confirmation), width)
    methods = methods_table(confirmation)
    return whole if methods is None else Group(fit_table(methods, width), "", whole)


def methods_table(confirmation: Confirmation) -> ResultTable | None:
    """One row per method, in the order of validation; None if fewer than two were confirmed.

    Each method is represented by the trial that validation found best. Differences are to plain
    fine-tuning as the search tuned it, if that is one of the methods, else to the reference.
    """
    if not confirmation.methods:
        return None
    tuned_ft = next((one for one in confirmation.methods if one.method == FT), None)
    untuned = untuned_label(confirmation.search)
    compared = FT if tuned_ft is None else tuned_ft.trial_id

    def row(one: Configuration) -> dict[str, Cell]:
        is_reference = one.trial_id == FT
        seconds = confirmation.estimate(one.trial_id, SECONDS)
        values: dict[str, Cell] = {
            "method": untuned_label(confirmation.search, "\n")
            if is_reference
            else one.method or "",
            "trial": "" if is_reference else one.trial_id,
            "time": "" if seconds is None else format_seconds(seconds.mean),
        }
        for metric in (_ID_ACC, _OOD_MEAN_ACC, _ID_ECE, _OOD_MEAN_ECE):
            values[metric] = _mean(confirmation.estimate(one.trial_id, metric))
        for metric in (_ID_ACC, _OOD_MEAN_ACC) if one.trial_id != compared else ():
            gap = confirmation.against(compared, one.trial_id, metric)
            values[f"{metric} - ft"] = _difference(gap)
        return values

    reference = [one for one in confirmation.configurations if one.trial_id == FT]
    above = [_zero_shot_row(confirmation, "method"), *map(row, reference)]
    rows = [Row(values, "dim", ends_section=values is above[-1]) for values in above]
    rows += [Row(row(one)) for one in confirmation.methods]
    columns = [
        Column("method", "method", left=True),
        Column("trial", "trial", drop=1, left=True),
        Column(_ID_ACC, "ID"),
        Column(_OOD_MEAN_ACC, "OOD mean"),
        Column(_ID_ECE, "ECE ID", drop=3),
        Column(_OOD_MEAN_ECE, "ECE OOD", drop=4),
        Column("time", "time", drop=2),
        Column(f"{_ID_ACC} - ft", "ID - ft\n[95 % interval]", drop=5),
        Column(f"{_OOD_MEAN_ACC} - ft", "OOD mean - ft\n[95 % interval]", drop=6),
    ]
    notes = [
        f"The best trial of each method, in this order. {confirmation.search.selection}",
        "Mean ± standard deviation over seeds. ECE: calibration error. Time: of one training, "
        "evaluations included.",
        f"Differences are to ft as the search tuned it ({compared}). {untuned} is plain "
        "fine-tuning with the settings of the configuration file."
        if tuned_ft
        else f"Differences are to {untuned}: plain fine-tuning with the settings of the "
        "configuration file, while the methods were tuned.",
    ]
    if short := _fewer_seeds(confirmation, (_ID_ACC, _OOD_MEAN_ACC, _ID_ECE, _OOD_MEAN_ECE)):
        notes.append(f"Fewer seeds: {short}.")
    title = f"{confirmation.search.name}, methods on the test splits, in percent"
    return ResultTable(title, columns, rows, notes, "confirm/results.parquet")


def confirmation_table(confirmation: Confirmation) -> ResultTable:
    """Means over seeds, then differences to plain fine-tuning, then to the zero-shot model."""
    search, configurations = confirmation.search, confirmation.configurations
    untuned = untuned_label(search)
    columns = [
        Column("name", "", left=True, min_width=20),
        Column(_ID_ACC, f"{search.id_domain}\n(ID)"),
    ]
    if search.ood_domains:
        columns.append(Column(_OOD_MEAN_ACC, "OOD\nmean"))
    for domain in search.ood_domains:
        key = str(MetricKey(SPLIT, domain, "acc"))
        columns.append(Column(key, domain, drop=1, group="domains"))
    metrics = [column.key for column in columns[1:]]
    rows = [
        _heading("mean ± standard deviation"),
        Row(_zero_shot_row(confirmation, "name")),
    ]
    for one in configurations:
        means = {m: _mean(confirmation.estimate(one.trial_id, m)) for m in metrics}
        params = Text(format_params(one.params, but=["seed"]), "dim")
        name = Text.assemble(
            (one.trial_id, "bold"), " *\n" if one.looks_at_ood else "\n",
            ", ".join(one.labels), "\n", params,
        )  # fmt: skip
        values: dict[str, Cell] = {"name": untuned if one.trial_id == FT else name, **means}
        is_last = one is configurations[-1]
        ends = {m: confirmation.estimate(one.trial_id, END + m) for m in metrics}
        has_end = any(ends.values())
        rows.append(Row(values, ends_section=is_last and not has_end))
        if has_end:
            label = Text("  at the end of its training", "dim")
            means = {m: _mean(estimate) for m, estimate in ends.items()}
            rows.append(Row({"name": label, **means}, "dim", ends_section=is_last))

    def differences(to: str, against: Callable[[str, str], Estimate | None]) -> None:
        rows.append(_heading(f"difference to {to} [95 % interval]"))
        for one in configurations:
            if one.trial_id == FT and to == untuned:
                continue
            method = one.params.get(METHOD_KEY)
            name = one.trial_id + ("" if method is None else f" ({method})")
            gaps = {m: _difference(against(one.trial_id, m)) for m in metrics}
            values = {"name": untuned if one.trial_id == FT else name, **gaps}
            rows.append(Row(values, ends_section=one is configurations[-1]))

    differences(untuned, partial(confirmation.against, FT))
    differences(ZERO_SHOT, confirmation.against_zero_shot)
    title = f"{search.name}, test accuracy in percent"
    notes = _notes(confirmation, metrics)
    return ResultTable(title, columns, rows, notes, "confirm/results.parquet")


def _fewer_seeds(confirmation: Confirmation, metrics: Sequence[str]) -> str:
    """Configurations without a finite value of a metric for some seeds, each with the number of
    seeds that have one; empty if there are none."""
    found = []
    for one in confirmation.configurations:
        numbers = [len(confirmation.values(one.trial_id, metric)) for metric in metrics]
        # A metric without any value has a dash in the table.
        least = min((number for number in numbers if number), default=0)
        if least < len(confirmation.seeds):
            found.append(f"{one.trial_id}: {least}")
    return ", ".join(found)


def _notes(confirmation: Confirmation, metrics: Sequence[str]) -> list[str]:
    seeds, short = confirmation.seeds, _fewer_seeds(confirmation, metrics)
    lines = [
        f"{len(seeds)} seeds that the search did not use ({seeds[0]} to {seeds[-1]})"
        f"{'' if short else ', the same in every row'}. Differences are paired by seed; intervals "
        "are Student's t.",
        f"{untuned_label(confirmation.search)} has the settings of the configuration file; the "
        "trials beside it were chosen by the search.",
        "The test splits were read once per row, after the choice on validation data. Choosing "
        "among these rows now would be a choice on test data.",
    ]
    if any(one.looks_at_ood for one in confirmation.configurations):
        lines.append("* The choice used OOD validation data: these domains are not unseen.")
    if short_of := [one.trial_id for one in confirmation.configurations if one.misses]:
        lines.append(f"The constraints of the search are missed by {', '.join(short_of)}.")
    if confirmation.search.sees_ood:
        lines.append(PROPOSED_WITH_OOD)
    lines.append(
        "Intervals cover the variation between trainings, not the sampling of test images, and are "
        "not corrected for multiple comparisons."
    )
    if short:
        lines.append(f"Fewer seeds: {short}.")
    if confirmation.failed:
        lines.append(f"{len(confirmation.failed)} failed; the next call tries again:")
    for (trial_id, seed), reason in confirmation.failed.items():
        lines.append(f"  {trial_id}{'' if seed is None else f' seed {seed}'}: {reason}")
    return lines


def _heading(text: str) -> Row:
    return Row({"name": Text(text, "dim")})


def _zero_shot_row(confirmation: Confirmation, key: str) -> Mapping[str, Cell]:
    return {key: ZERO_SHOT, **{m: format_percent(v) for m, v in confirmation.zero_shot.items()}}


def _mean(estimate: Estimate | None) -> str:
    return "-" if estimate is None else format_mean(estimate.mean, estimate.sd)


def _difference(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return "-"
    return format_difference(estimate.mean, estimate.low, estimate.high)
