"""Runs as a list and side by side, and the ready configurations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from trainers.errors import first_line, shortened
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from trainers.overrides import flat
from tuning.config.loading import find_config, ready_configs
from tuning.log.folder import last_written
from tuning.log.journal import is_running
from tuning.log.records import trial_label
from tuning.results.budget import num_ended
from tuning.results.ranking import references
from tuning.run import Run, load_run
from tuning.views.formatting import format_params, format_percent, format_seconds, format_value
from tuning.views.result_table import borderless_table


def state_of(run: Run) -> str:
    """`running`, `killed`, or how the last session ended."""
    return "running" if is_running(run.folder) else run.history.outcome or "killed"


def runs_table(runs: Sequence[Path]) -> Table:
    """One row for each run: how it stands, and its best value of the first objective."""
    columns = ("state", "trials", "value", "objective", "last event")
    table = borderless_table("run", *columns, text=(0, 1, 4, 5))
    for run in runs:
        found = _facts(run)
        table.add_row(escape(run.name), *(escape(found.get(column, "")) for column in columns))
    if not runs:
        table.add_row("none yet: lipsum-tune search quickstart")
    return table


def comparison(runs: Sequence[Path]) -> RenderableType:
    """One column for each run: what it has found, then the keys in which configurations differ."""
    files = [load_run(run).file for run in runs]
    values = [flat(file.model_dump(mode="json")) for file in files]
    data = [file.trial.data for file in files]
    has_same_domains = len({(one.id_domain, frozenset(one.ood_domains)) for one in data}) == 1
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("", *(run.name for run in runs)):
        table.add_column(escape(name), overflow="fold")
    found = [_facts(run) for run in runs]
    for key in dict.fromkeys(key for facts in found for key in facts):
        table.add_row(key, *(escape(facts.get(key, "")) for facts in found))
    for key in dict.fromkeys(key for each in values for key in each):
        if key.startswith("trial.data.suite.") and not has_same_domains:
            continue
        texts = [str(each[key]) if key in each else "" for each in values]
        if len({*texts}) > 1 and key not in ("search.name", "search.storage"):
            table.add_row(key, *map(escape, texts), style="dim")
    if has_same_domains:
        return table
    return Group(
        "These runs have different domains: their accuracies cannot be compared.", "", table
    )


def _facts(folder: Path) -> dict[str, str]:
    when = datetime.fromtimestamp(last_written(folder)).strftime("%Y-%m-%d %H:%M")
    try:
        run = load_run(folder)
        metric = run.file.objectives[0].metric
        ended = num_ended(run.records)
        found = {"state": state_of(run), "trials": f"{ended}/{run.file.most_trials}"}
        if run.history.zero_shot is not None:
            best = run.best
            value = None if best is None else best.last(metric)
            found |= {"value": "" if value is None else format_value(value), "objective": metric}
            models = {
                trial_label(r): r.metrics for r in reversed(references(run.goal, run.records))
            }
            if best is not None:
                found["best"] = f"{trial_label(best)}  {format_params(best.params)}".rstrip()
                models = {"best": best.metrics, **models}
            for name, key in (("ID", ID_ACC), ("OOD", OOD_MEAN_ACC)):
                for label, metrics in models.items():
                    found[f"{name}, {label}"] = format_percent(metrics.get(key))
        seconds = sum(record.seconds or 0.0 for record in run.records)
        return {**found, "all trials": format_seconds(seconds), "last event": when}
    except Exception as error:  # damaged, or of another version: the others are still listed
        return {"state": f"unreadable: {shortened(first_line(error), 60)}", "last event": when}


def configs_table() -> Table:
    """One row for each ready configuration: its name, and what its first comment says."""
    table = borderless_table("name", "what it is", text=(0, 1))
    for name in ready_configs():
        lines = find_config(name).read_text(encoding="utf-8").splitlines()
        comment = takewhile(lambda line: line.startswith("# "), lines)
        table.add_row(name, escape(" ".join(line[2:] for line in comment)))
    return table
