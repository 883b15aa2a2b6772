"""Tables of a confirmation: test accuracies, and differences to fine-tuning and zero-shot."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from trainers.data.storage import open_store, url_of
from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.configurations import read_confirmation
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
from tuning.confirmation.verdict import findings, verdict
from tuning.runs.checkpoint_home import TRAIN_FOLDER
from tuning.runs.journal import is_running
from tuning.runs.records import METHOD_KEY, SECONDS, ZERO_SHOT, TrialRecord
from tuning.runs.run_folder import LoadedRun
from tuning.selection.rules import BY_METHOD, PROPOSED_WITH_OOD
from tuning.views.callback import write_results
from tuning.views.formatting import (
    UNTUNED,
    format_difference,
    format_mean,
    format_params,
    format_percent,
    format_seconds,
)
from tuning.views.result_table import Cell, Column, ResultTable, Row, fit_table, plain

TABLE_FILE = "results.parquet"
_ID_ACC: Final = str(MetricKey(SPLIT, ID, "acc"))
_OOD_MEAN_ACC: Final = str(MetricKey(SPLIT, MEAN_OOD, "acc"))
_ID_ECE: Final = str(MetricKey(SPLIT, ID, "ece"))
_OOD_MEAN_ECE: Final = str(MetricKey(SPLIT, MEAN_OOD, "ece"))


def report(confirmation: Confirmation, width: int | None = None) -> RenderableType:
    """The table for a terminal of this width."""
    return fit_table(confirmation_table(confirmation), width)


def confirmation_table(confirmation: Confirmation) -> ResultTable:
    """Means over seeds, then differences to plain fine-tuning, as configured and as the search has
    tuned it if it was one of the methods, and to the zero-shot model."""
    search, configurations = confirmation.search, confirmation.configurations
    acc = [Column(_ID_ACC, f"{search.id_domain}\n(ID)")]
    ece = [Column(_ID_ECE, "ECE\nID", drop=2)]
    if search.ood_domains:
        acc.append(Column(_OOD_MEAN_ACC, "OOD\nmean"))
        ece.append(Column(_OOD_MEAN_ECE, "ECE\nOOD", drop=2))
    for domain in search.ood_domains:
        key = str(MetricKey(SPLIT, domain, "acc"))
        acc.append(Column(key, domain, drop=1, group="domains"))
    name = Column("name", "")
    columns = [name, *acc, *ece, Column("time", "time", drop=3)]
    accs, metrics = [column.key for column in acc], [column.key for column in (*acc, *ece)]
    zero_shot = {m: format_percent(v) for m, v in confirmation.zero_shot.items()}
    rows = [_heading("mean ± standard deviation"), Row({"name": ZERO_SHOT, **zero_shot})]
    for one in configurations:
        params = Text(format_params(one.params, but=["seed"]), "dim")
        star = " *\n" if one.looks_at_ood(search) else "\n"
        labels = ", ".join(one.labels)
        named = Text.assemble((one.trial_id, "bold"), star, labels, "\n", params)
        seconds = confirmation.estimate(one.trial_id, SECONDS)
        values = {
            "name": UNTUNED if one.trial_id == FT else named,
            **_means(confirmation, one, metrics),
            "time": "" if seconds is None else format_seconds(seconds.mean),
        }
        rows.append(Row(values))
        if any(confirmation.values(one.trial_id, END + metric) for metric in accs):
            ends = _means(confirmation, one, accs, END)
            rows.append(Row({"name": Text("  at the end of its training", "dim"), **ends}, "dim"))

    def differences(label: str, to: str, against: Callable[[str, str], Estimate | None]) -> None:
        rows.append(_heading(f"difference to {label} [95 % interval]"))
        for one in configurations:
            if one.trial_id != to:
                method = one.params.get(METHOD_KEY)
                name = one.trial_id + ("" if method is None else f" ({method})")
                gaps = {m: _difference(against(one.trial_id, m)) for m in accs}
                rows.append(Row({"name": UNTUNED if one.trial_id == FT else name, **gaps}))

    differences(UNTUNED, FT, partial(confirmation.against, FT))
    for one in configurations:
        if BY_METHOD in one.rules and one.method == FT:
            against = partial(confirmation.against, one.trial_id)
            differences(f"{one.trial_id}, tuned FT", one.trial_id, against)
    differences(ZERO_SHOT, ZERO_SHOT, confirmation.against_zero_shot)
    title = f"{search.name}, test splits, in percent"
    notes = list(_notes(confirmation, accs))
    return ResultTable(title, columns, rows, notes, f"{CONFIRM_FOLDER}/{TABLE_FILE}")


def _notes(confirmation: Confirmation, metrics: Sequence[str]) -> Iterator[str]:
    seeds, configurations = confirmation.seeds, confirmation.configurations
    yield (
        f"Over {len(seeds)} seeds that the search did not use ({seeds[0]} to {seeds[-1]}); "
        "differences are paired by seed."
    )
    if any(one.looks_at_ood(confirmation.search) for one in configurations):
        yield "* The choice used OOD validation data: these domains are not unseen."
    if confirmation.search.sees_ood:
        yield PROPOSED_WITH_OOD
    fewer = []
    for one in configurations:
        numbers = [len(confirmation.values(one.trial_id, metric)) for metric in metrics]
        # A metric without any value has a dash in the table.
        least = min((number for number in numbers if number), default=0)
        if least < len(seeds):
            fewer.append(f"{one.trial_id}: {least}")
    if fewer:
        yield f"Fewer seeds: {', '.join(fewer)}."
    if confirmation.failed:
        yield f"{len(confirmation.failed)} trainings failed; the same command tries them again:"
    for (trial_id, seed), reason in confirmation.failed.items():
        yield f"  {trial_id} seed {seed}: {reason}"


def _heading(text: str) -> Row:
    return Row({"name": Text(text, "dim")})


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
    content, folder = io.BytesIO(), run_folder / CONFIRM_FOLDER
    pd.DataFrame(rows).astype({"seed": "Int64"}).to_parquet(content)
    with open_store(folder).write(TABLE_FILE) as file:
        file.write(content.getbuffer())
    return folder / TABLE_FILE


def write_run_report(run: LoadedRun) -> Path:
    """Write tables, page and main figure of a run, with the results of `confirm` if there are any.

    Returns:
        The path of the page.

    Raises:
        StorageFailed: the disk is full or fails.
    """
    search, records = run.search, run.history.records
    more: dict[str, Any] = {"lines": findings(search, records)}
    with suppress(ConfigError):  # damaged results of `confirm`, as the lines say
        found, won = read_confirmation(search), verdict(search, records)
        if found is not None and found.seeds:
            more["shown"] = {"Confirmed on fresh seeds": plain(confirmation_table(found))}
        if won is not None and won.seeds:
            more["commands"] = won.commands(shlex.quote(search.name))
    checkpoints = url_of(run.home, TRAIN_FOLDER)
    is_over = run.history.outcome is not None or not is_running(run.folder)
    return write_results(search, records, checkpoints, running=not is_over, **more)
