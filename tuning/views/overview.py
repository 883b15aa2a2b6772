"""What there is: the runs of a folder, and the ready configurations, as tables."""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile
from pathlib import Path

from tuning.config.loading import find_config, ready_configs
from tuning.runs.journal import is_running
from tuning.runs.ranking import best_trial
from tuning.runs.run_folder import last_written, load_run, runs_in
from tuning.views.formatting import format_value
from tuning.views.result_table import Column, ResultTable, Row


def runs_table(folder: Path) -> ResultTable:
    """One row for each run: how it stands, and its best value of the first objective."""
    columns = [
        Column("name", "run", left=True),
        Column("state", "state", left=True),
        Column("trials", "trials"),
        Column("best", "best"),
        Column("objective", "objective", left=True, drop=1),
        Column("when", "last event", left=True, drop=2),
    ]
    runs = runs_in(folder)
    notes = [] if runs else ["None yet: lipsum-tune search quickstart"]
    return ResultTable(f"Runs in {folder}", columns, [_run_row(run) for run in runs], notes)


def _run_row(folder: Path) -> Row:
    when = datetime.fromtimestamp(last_written(folder)).strftime("%Y-%m-%d %H:%M")
    values: dict[str, object] = {"name": folder.name, "when": when}
    try:
        run = load_run(folder)
        records, objective = run.history.records, run.file.objectives[0].metric
        state = "running" if is_running(folder) else run.history.outcome or "killed"
        ended = sum(record.kind == "trial" and record.is_final for record in records)
        found: dict[str, object] = {"state": state, "objective": objective}
        found["trials"] = f"{ended}/{run.file.search.budget.trials}"
        if run.history.zero_shot is not None:
            found["trials"] = f"{ended}/{run.search.budget_trials}"
            best = best_trial(run.search, records)
            value = None if best is None else best.last(objective)
            found["best"] = None if value is None else format_value(value)
    except Exception as error:  # damaged, or of another version: the others are still listed
        return Row(values | {"state": f"unreadable: {type(error).__name__}"}, "dim")
    return Row(values | found)


def configs_table() -> ResultTable:
    """One row for each ready configuration: its name, and what its first comment says."""
    columns = [
        Column("name", "name", left=True),
        Column("about", "what it is", left=True, min_width=30),
    ]
    rows = []
    for name in ready_configs():
        lines = find_config(name).read_text(encoding="utf-8").splitlines()
        comment = takewhile(lambda line: line.startswith("# "), lines)
        rows.append(Row({"name": name, "about": " ".join(line[2:] for line in comment)}))
    return ResultTable("Ready configurations", columns, rows)
