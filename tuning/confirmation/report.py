"""Tables of a confirmation: test accuracies, and differences to fine-tuning and zero-shot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.text import Text

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.results import (
    CONFIRM_FOLDER,
    END,
    FT,
    SPLIT,
    Configuration,
    Confirmation,
    Key,
)
from tuning.confirmation.statistics import Estimate
from tuning.runs.records import METHOD_KEY, SECONDS, ZERO_SHOT, TrialRecord
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
from tuning.views.tables.arrow import metric_fields, param_fields, plain_table, write_atomically

TABLE_FILE = "results.parquet"
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
    untuned = untuned_label(confirmation.search)
    tuned_ft = next((one for one in confirmation.methods if one.method == FT), None)
    compared = FT if tuned_ft is None else tuned_ft.trial_id
    columns = [
        Column("method", "method", left=True),
        Column("trial", "trial", drop=1, left=True),
        Column(_ID_ACC, "ID"),
        Column(_OOD_MEAN_ACC, "OOD mean"),
        Column(_ID_ECE, "ECE ID", drop=3),
        Column(_OOD_MEAN_ECE, "ECE OOD", drop=4),
        Column("time", "time", drop=2),
        *(
            Column(f"{metric} - ft", f"{name} - {compared}\n[95 % interval]", drop=drop)
            for drop, name, metric in ((5, "ID", _ID_ACC), (6, "OOD mean", _OOD_MEAN_ACC))
        ),
    ]

    def row(one: Configuration) -> dict[str, Cell]:
        means = _means(confirmation, one, [column.key for column in columns[2:6]])
        seconds = confirmation.estimate(one.trial_id, SECONDS)
        named = (untuned, "") if one.trial_id == FT else (one.method or "", one.trial_id)
        values = {**means, "time": "" if seconds is None else format_seconds(seconds.mean)}
        for metric in (_ID_ACC, _OOD_MEAN_ACC) if one.trial_id != compared else ():
            gap = confirmation.against(compared, one.trial_id, metric)
            values[f"{metric} - ft"] = _difference(gap)
        return {**values, "method": named[0], "trial": named[1]}

    reference = [one for one in confirmation.configurations if one.trial_id == FT]
    above = [_zero_shot_row(confirmation, "method"), *map(row, reference)]
    rows = [Row(values, "dim", ends_section=values is above[-1]) for values in above]
    rows += [Row(row(one)) for one in confirmation.methods]
    title = f"{confirmation.search.name}, methods on the test splits, in percent"
    return ResultTable(title, columns, rows, [], f"{CONFIRM_FOLDER}/{TABLE_FILE}")


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
    rows = [_heading("mean ± standard deviation"), Row(_zero_shot_row(confirmation, "name"))]
    for one in configurations:
        params = Text(format_params(one.params, but=["seed"]), "dim")
        star = " *\n" if one.looks_at_ood else "\n"
        labels = ", ".join(one.labels)
        named = Text.assemble((one.trial_id, "bold"), star, labels, "\n", params)
        means = _means(confirmation, one, metrics)
        rows.append(Row({"name": untuned if one.trial_id == FT else named, **means}))
        if any(confirmation.values(one.trial_id, END + metric) for metric in metrics):
            ends = _means(confirmation, one, metrics, END)
            rows.append(Row({"name": Text("  at the end of its training", "dim"), **ends}, "dim"))

    def differences(to: str, against: Callable[[str, str], Estimate | None]) -> None:
        rows.append(_heading(f"difference to {to} [95 % interval]"))
        for one in configurations:
            if one.trial_id == FT and to == untuned:
                continue
            method = one.params.get(METHOD_KEY)
            name = one.trial_id + ("" if method is None else f" ({method})")
            gaps = {m: _difference(against(one.trial_id, m)) for m in metrics}
            rows.append(Row({"name": untuned if one.trial_id == FT else name, **gaps}))

    differences(untuned, partial(confirmation.against, FT))
    differences(ZERO_SHOT, confirmation.against_zero_shot)
    title = f"{search.name}, test accuracy in percent"
    notes = list(_notes(confirmation, metrics))
    return ResultTable(title, columns, rows, notes, f"{CONFIRM_FOLDER}/{TABLE_FILE}")


def _notes(confirmation: Confirmation, metrics: Sequence[str]) -> list[str]:
    seeds, configurations = confirmation.seeds, confirmation.configurations
    lines = [
        f"Over {len(seeds)} seeds that the search did not use ({seeds[0]} to {seeds[-1]}); "
        "differences are paired by seed."
    ]
    if any(one.looks_at_ood for one in configurations):
        lines.append("* The choice used OOD validation data: these domains are not unseen.")
    if missing := [one.trial_id for one in configurations if one.misses]:
        lines.append(f"The constraints of the search are missed by {', '.join(missing)}.")
    if confirmation.search.sees_ood:
        lines.append(PROPOSED_WITH_OOD)
    fewer = []
    for one in configurations:
        numbers = [len(confirmation.values(one.trial_id, metric)) for metric in metrics]
        # A metric without any value has a dash in the table.
        least = min((number for number in numbers if number), default=0)
        if least < len(seeds):
            fewer.append(f"{one.trial_id}: {least}")
    if fewer:
        lines.append(f"Fewer seeds: {', '.join(fewer)}.")
    if confirmation.failed:
        lines.append(f"{len(confirmation.failed)} failed; the next call tries again:")
    for (trial_id, seed), reason in confirmation.failed.items():
        lines.append(f"  {trial_id} seed {seed}: {reason}")
    return lines


def _heading(text: str) -> Row:
    return Row({"name": Text(text, "dim")})


def _zero_shot_row(confirmation: Confirmation, key: str) -> Mapping[str, Cell]:
    return {key: ZERO_SHOT, **{m: format_percent(v) for m, v in confirmation.zero_shot.items()}}


def _means(
    confirmation: Confirmation, one: Configuration, metrics: Sequence[str], prefix: str = ""
) -> dict[str, Cell]:
    found = {m: confirmation.estimate(one.trial_id, prefix + m) for m in metrics}
    return {m: "-" if e is None else format_mean(e.mean, e.sd) for m, e in found.items()}


def _difference(found: Estimate | None) -> Cell:
    return "-" if found is None else format_difference(found.mean, found.low, found.high)


def write_results_table(run_folder: Path, results: Mapping[Key, TrialRecord]) -> Path:
    """Write the results as Parquet, one row per configuration and seed; returns the path.

    Columns: trial_id, kind, seed, labels, then one per parameter and one per metric.
    """
    rows: list[dict[str, Any]] = []
    for (trial_id, seed), record in results.items():
        kind = {ZERO_SHOT: "zero_shot", FT: "reference"}.get(trial_id, "trial")
        about = {"trial_id": trial_id, "kind": kind, "labels": ", ".join(record.labels)}
        rows.append({**about, **record.params, "seed": seed, **record.metrics})
    named = {name: pa.string() for name in ("trial_id", "kind")}
    named |= {"seed": pa.int64(), "labels": pa.string()}
    params = [{k: v for k, v in r.params.items() if k != "seed"} for r in results.values()]
    metrics = [record.metrics for record in results.values()]
    fields = [*map(pa.field, named, named.values()), *param_fields(params), *metric_fields(metrics)]
    path = run_folder / CONFIRM_FOLDER / TABLE_FILE
    write_atomically(plain_table(rows, fields), path)
    return path
