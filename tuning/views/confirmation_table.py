"""The tables of a confirmation, both of test accuracies: of settings, and of the model.

Settings stand beside fine-tuning and zero-shot, with intervals over seeds and images; the model has
intervals over images alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.log.folder import word_for
from tuning.log.records import METHOD_KEY, SECONDS, UNTUNED, ZERO_SHOT, Model
from tuning.results.estimates import END, FT, SPLIT, Confirmation, Estimate
from tuning.results.model import Finding, findings, findings_by_rule, made_of
from tuning.results.rules import BY_METHOD, chosen_with_ood, rules_of
from tuning.views.formatting import format_params, format_seconds
from tuning.views.result_table import Cell, ResultTable, fit_table

_ID_ACC: Final = str(MetricKey(SPLIT, ID, "acc"))
_OOD_MEAN_ACC: Final = str(MetricKey(SPLIT, MEAN_OOD, "acc"))
_ID_ECE: Final = str(MetricKey(SPLIT, ID, "ece"))
_OOD_MEAN_ECE: Final = str(MetricKey(SPLIT, MEAN_OOD, "ece"))


def confirmed_tables(
    confirmation: Confirmation, models: Sequence[Model], width: int
) -> list[Table]:
    """For a terminal of this width, the tables of the model, if one was built, and of settings."""
    tables = model_table(confirmation, models), confirmation_table(confirmation)
    return [
        fit_table(table, width, word_for(confirmation.run.folder))
        for table in tables
        if table is not None
    ]


def confirmation_table(confirmation: Confirmation) -> ResultTable:
    """Means over seeds, then differences to plain fine-tuning, as configured and as the search has
    tuned it if it was one of the methods, and to the zero-shot model."""
    run = confirmation.run
    configurations = confirmation.configurations
    accs = {_ID_ACC: f"{run.file.trial.data.id_domain}\n(ID)"}
    errors = {_ID_ECE: "ECE\nID"}
    if run.goal.ood_domains:
        accs[_OOD_MEAN_ACC], errors[_OOD_MEAN_ECE] = "OOD\nmean", "ECE\nOOD"
    accs |= {str(MetricKey(SPLIT, domain, "acc")): domain for domain in run.goal.ood_domains}
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
        star = " *\n" if chosen_with_ood(run.goal, one) else "\n"
        labels = ", ".join(one.labels)
        named = Text.assemble((one.trial_id, "bold"), star, labels, "\n", params)
        seconds = confirmation.estimate(one.trial_id, SECONDS)
        time = "" if seconds is None else format_seconds(seconds.mean)
        means = _means(confirmation, one.trial_id, [*accs, *errors])
        if one.trial_id == FT:
            named = Text(f"{UNTUNED}{star.rstrip()}")
        add(named, {**means, "time": time})
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
        if BY_METHOD in rules_of(one) and run.method(one) == FT:
            differences(f"{one.trial_id}, tuned FT", one.trial_id)
    differences(ZERO_SHOT, ZERO_SHOT)
    title = f"{run.name}, test splits, in percent"
    notes = list(_notes(confirmation, [*accs]))
    return ResultTable(["", *columns.values()], rows, notes, title)


def _notes(confirmation: Confirmation, metrics: Sequence[str]) -> Iterator[str]:
    seeds, configurations = confirmation.seeds, confirmation.configurations
    yield (
        f"Over {len(seeds)} seeds that the search did not use ({seeds[0]} to {seeds[-1]}); "
        "differences are paired by seed and image."
    )
    trained = [one.trial_id for one in configurations if confirmation.values(one.trial_id, _ID_ACC)]
    blind = [name for name in trained if not confirmation.right(name, _ID_ACC)]
    images = " and new images" if blind != trained else " alone: no predictions are stored"
    but = f", those of {', '.join(blind)} for new seeds alone" if blind and blind != trained else ""
    yield f"Intervals hold for new seeds{images}{but}."
    if len(seeds) == 2:
        yield (
            "Intervals of two seeds tell nothing: they are 3.6 times as wide as those of three. "
            "The same command with --seeds 5 adds three."
        )
    if any(chosen_with_ood(confirmation.run.goal, one) for one in configurations):
        yield "* Chosen with OOD validation data of these domains."
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


def _means(
    confirmation: Confirmation, trial_id: str, metrics: Sequence[str], prefix: str = ""
) -> dict[str, str]:
    """Mean and standard deviation over the seeds, and below it the interval."""
    cells = dict.fromkeys(metrics, "-")
    for metric in metrics:
        if found := confirmation.estimate(trial_id, prefix + metric):
            cells[metric] = f"{found.mean:.1f}"
            if trial_id != ZERO_SHOT and not math.isnan(found.sd):
                cells[metric] += f" ± {found.sd:.1f}"
            if found.covers_images:
                low, high = max(0.0, found.low), min(100.0, found.high)  # of a percentage
                cells[metric] += f"\n[{low:.1f}, {high:.1f}]"
    return cells


def _difference(found: Estimate | None) -> Cell:
    """A difference and its interval, in bold if that excludes 0."""
    if found is None or math.isnan(found.low):
        return "-" if found is None else f"{found.mean:+.1f}"
    style = "bold" if found.low > 0 or found.high < 0 else ""
    return Text(f"{found.mean:+.1f}\n[{found.low:+.1f}, {found.high:+.1f}]", style)


def model_table(confirmation: Confirmation, models: Sequence[Model]) -> ResultTable | None:
    """The last model that was tested, and below it earlier ones; None without any."""
    if not models:
        return None
    *earlier, model = models
    run = confirmation.run
    domains = {ID: f"{run.file.trial.data.id_domain}\n(ID)"}
    if run.goal.ood_domains:
        domains[MEAN_OOD] = "OOD\nmean"
    domains |= {domain: domain for domain in run.goal.ood_domains}
    metrics = [str(MetricKey(SPLIT, domain, "acc")) for domain in domains]
    rows: list[Sequence[Cell]] = []

    def add(label: Cell, found: Finding, sign: str = "") -> None:
        rows.append([label, *(_with_margin(found.values.get(one), sign) for one in metrics)])

    own, *others = findings(confirmation, model)
    add(Text(own.title, "bold"), own)
    for found in others:
        add(f"more {found.title}", found, "+")
    for found in findings_by_rule(confirmation, model):
        add(found.title, found)
    for one in reversed(earlier):
        add(f"an earlier model: {made_of(one)}", findings(confirmation, one)[0])
    title = f"{run.name}, the model, test splits, in percent"
    names = [training["name"] for training in model.chosen.trainings]
    notes = [f"Mean of the weights of {', '.join(names)}."] if len(names) > 1 else []
    return ResultTable(["", *domains.values()], rows, notes, title)


def _with_margin(value: Estimate | None, sign: str) -> str:
    if value is None:
        return "-"
    margin = "" if math.isnan(value.low) else f" ± {value.high - value.mean:.1f}"
    return f"{value.mean:{sign}z.1f}{margin}"
