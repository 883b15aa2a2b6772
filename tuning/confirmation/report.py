"""Tables of a confirmation: test accuracies, and differences to fine-tuning and zero-shot."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pandas as pd
from pandas.api.types import infer_dtype
from rich.text import Text

from trainers.data.storage import open_store, url_of
from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.verdict import findings, verdict
from tuning.runs.confirmation import (
    CONFIRM_FOLDER,
    END,
    FT,
    SPLIT,
    Confirmation,
    Estimate,
    Key,
    read_confirmation,
)
from tuning.runs.journal import is_running
from tuning.runs.records import METHOD_KEY, SECONDS, UNTUNED, ZERO_SHOT, TrialRecord
from tuning.runs.run_folder import TRAIN_FOLDER, LoadedRun
from tuning.selection.rules import BY_METHOD, PROPOSED_WITH_OOD, chosen_with_ood, rules_of
from tuning.views.answer import commands_after
from tuning.views.callback import write_results
from tuning.views.formatting import format_difference, format_mean, format_params, format_seconds
from tuning.views.result_table import Cell, ResultTable

TABLE_FILE = "results.parquet"
_ID_ACC: Final = str(MetricKey(SPLIT, ID, "acc"))
_OOD_MEAN_ACC: Final = str(MetricKey(SPLIT, MEAN_OOD, "acc"))
_ID_ECE: Final = str(MetricKey(SPLIT, ID, "ece"))
_OOD_MEAN_ECE: Final = str(MetricKey(SPLIT, MEAN_OOD, "ece"))


def confirmation_table(confirmation: Confirmation) -> ResultTable:
    """Means over seeds, then differences to plain fine-tuning, as configured and as the search has
    tuned it if it was one of the methods, and to the zero-shot model."""
    search, configurations = confirmation.search, confirmation.configurations
    accs = {_ID_ACC: f"{search.id_domain}\n(ID)"}
    errors = {_ID_ECE: "ECE\nID"}
    if search.ood_domains:
        accs[_OOD_MEAN_ACC], errors[_OOD_MEAN_ECE] = "OOD\nmean", "ECE\nOOD"
    accs |= {str(MetricKey(SPLIT, domain, "acc")): domain for domain in search.ood_domains}
    columns = {**accs, **errors, "time": "time"}
    rows: list[Sequence[Cell]] = []

    def add(name: Cell, cells: Mapping[str, Cell]) -> None:
        rows.append([name, *(cells.get(key, "") for key in columns)])

    interval = "\n[95 % interval]" if confirmation.has_predictions else ""
    add(Text(f"mean ± standard deviation{interval}", "dim"), {})
    known = confirmation.zero_shot.keys() & columns
    add(ZERO_SHOT, _means(confirmation, ZERO_SHOT, [*known]))
    for one in configurations:
        params = Text(format_params(one.params, but=["seed"]), "dim")
        star = " *\n" if chosen_with_ood(search, one) else "\n"
        labels = ", ".join(one.labels)
        named = Text.assemble((one.trial_id, "bold"), star, labels, "\n", params)
        seconds = confirmation.estimate(one.trial_id, SECONDS)
        time = "" if seconds is None else format_seconds(seconds.mean)
        means = _means(confirmation, one.trial_id, [*accs, *errors])
        add(UNTUNED if one.trial_id == FT else named, {**means, "time": time})
        if any(confirmation.values(one.trial_id, END + metric) for metric in accs):
            ends = _means(confirmation, one.trial_id, [*accs], END)
            dim = {metric: Text(mean, "dim") for metric, mean in ends.items()}
            add(Text("  at the end of its training", "dim"), dim)

    def differences(label: str, to: str) -> None:
        add(Text(f"difference to {label}\n[95 % interval]", "dim"), {})
        for one in configurations:
            if one.trial_id != to:
                method = one.params.get(METHOD_KEY)
                name = one.trial_id + ("" if method is None else f" ({method})")
                gaps = {m: _difference(confirmation.against(to, one.trial_id, m)) for m in accs}
                add(UNTUNED if one.trial_id == FT else name, gaps)

    differences(UNTUNED, FT)
    for one in configurations:
        if BY_METHOD in rules_of(one) and search.method(one) == FT:
            differences(f"{one.trial_id}, tuned FT", one.trial_id)
    differences(ZERO_SHOT, ZERO_SHOT)
    title = f"{search.name}, test splits, in percent"
    notes = list(_notes(confirmation, [*accs]))
    return ResultTable(["", *columns.values()], rows, notes, title)


def _notes(confirmation: Confirmation, metrics: Sequence[str]) -> Iterator[str]:
    seeds, configurations = confirmation.seeds, confirmation.configurations
    yield (
        f"Over {len(seeds)} seeds that the search did not use ({seeds[0]} to {seeds[-1]}); "
        "differences are paired by seed and image."
    )
    yield from _intervals(confirmation)
    if any(chosen_with_ood(confirmation.search, one) for one in configurations):
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


def _intervals(confirmation: Confirmation) -> Iterator[str]:
    """What the intervals hold for."""
    found = [one.trial_id for one in confirmation.configurations]
    found = [name for name in found if confirmation.values(name, _ID_ACC)]
    without = [name for name in found if not confirmation.right(name, _ID_ACC)]
    if confirmation.has_predictions:
        yield "Intervals hold for new seeds and new images of these domains."
    if without:
        of = f" of {', '.join(without)}" if confirmation.has_predictions else ""
        yield f"Intervals{of} hold for new seeds on these images alone: no predictions are stored."


def _means(
    confirmation: Confirmation, trial_id: str, metrics: Sequence[str], prefix: str = ""
) -> dict[str, str]:
    """Mean and standard deviation over the seeds, and below it the interval."""
    cells = dict.fromkeys(metrics, "-")
    for metric in metrics:
        if found := confirmation.estimate(trial_id, prefix + metric):
            sd = math.nan if trial_id == ZERO_SHOT else found.sd
            cells[metric] = format_mean(found.mean, sd)
            if found.covers_images:
                low, high = max(0.0, found.low), min(100.0, found.high)  # of a percentage
                cells[metric] += f"\n[{low:.1f}, {high:.1f}]"
    return cells


def _difference(found: Estimate | None) -> Cell:
    return "-" if found is None else format_difference(found.mean, found.low, found.high)


def write_results_table(run_folder: Path, results: Mapping[Key, TrialRecord]) -> None:
    """Write the results as Parquet, one row per configuration and seed.

    Columns: trial_id, kind, seed, labels, then one per parameter and one per metric.
    """
    rows: list[dict[str, Any]] = []
    for (trial_id, seed), record in results.items():
        kind = {ZERO_SHOT: "zero_shot", FT: "reference"}.get(trial_id, "trial")
        about = {"trial_id": trial_id, "kind": kind, "labels": ", ".join(record.labels)}
        rows.append({**about, **record.params, "seed": seed, **record.metrics})
    table, content = pd.DataFrame(rows).astype({"seed": "Int64"}), io.BytesIO()
    for name in table:
        if infer_dtype(table[name]).startswith("mixed"):  # choices such as `off` and 0.5
            table[name] = table[name].map(str, na_action="ignore")
    table.to_parquet(content)
    with open_store(run_folder / CONFIRM_FOLDER).write(TABLE_FILE) as file:
        file.write(content.getbuffer())


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
            more["shown"] = {"Confirmed on fresh seeds": confirmation_table(found)}
        if won is not None and won.seeds:
            name = shlex.quote(search.name)
            more["commands"] = commands_after(won.record, name, is_confirmed=True)
    checkpoints = url_of(run.home, TRAIN_FOLDER)
    is_over = run.history.outcome is not None or not is_running(run.folder)
    return write_results(search, records, checkpoints, running=not is_over, **more)
