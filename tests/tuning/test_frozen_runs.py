"""What six run folders show, to the letter: terminal, page, tables, JSON and MLflow."""

import csv
import json
import re
import shutil
from contextlib import chdir

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from cluster.cli import app
from tests.tuning.databases import with_database
from tests.tuning.frozen_runs import FROZEN, RUNS
from tuning.views.mlflow.client import default_tracking_uri

VOLATILE = ("mlflow.user", "mlflow.source", "mlflow.sharedViewState")
"""Tags that differ by machine, or that are stated by a test of their own."""


def report(*options):
    shown = CliRunner().invoke(app, ["report", *options], env={"COLUMNS": "110"})
    assert shown.exit_code == 0, (shown.output, shown.exception)
    return shown


def page_of(folder):
    """The text and the tags of the page, without scripts, styles and the time."""
    html = (folder / "report" / "index.html").read_text(encoding="utf-8")
    html = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r"\n\s*\n+", "\n", html)


def tables_of(folder):
    """Every CSV, a line for each value that is there."""
    for path in sorted(folder.rglob("*.csv")):
        yield f"-- {path.relative_to(folder)}"
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                known = [f"{key}={value}" for key, value in row.items() if value != ""]
                yield f"{number}: {' | '.join(known)}"


def runs_of_mlflow(runs):
    """Every run with its tags, parameters and points; of the whole search no parameters."""
    client = MlflowClient(default_tracking_uri(runs))
    (experiment,) = [e for e in client.search_experiments() if e.name == "lipsum-tune"]
    found = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in found}
    for run in sorted(found, key=lambda run: (run.info.run_name, run.info.start_time)):
        info = run.info
        yield f"-- {info.run_name}: {info.status}, {info.start_time} to {info.end_time}"
        for key, value in sorted(run.data.tags.items()):
            if not key.startswith(VOLATILE):
                yield f"tag {key}: {names.get(value, value)}"
        for key, value in sorted(run.data.params.items()):
            if run.data.tags["kind"] != "search":
                yield f"param {key}: {value}"
        for key in sorted(run.data.metrics):
            history = client.get_metric_history(info.run_id, key)
            points = sorted((p.step, p.timestamp, p.value) for p in history)
            yield f"metric {key}: {points}"
        if run.data.tags["kind"] == "search":
            yield f"artifacts: {sorted(a.path for a in client.list_artifacts(info.run_id))}"


@pytest.mark.parametrize("name", RUNS)
def test_a_frozen_run_shows_the_same(name, tmp_path, request, monkeypatch, bucket):
    monkeypatch.setenv("TZ", "UTC")
    runs = with_database(tmp_path / "runs")
    folder = shutil.copytree(FROZEN / name, runs / name)
    (folder / "report").mkdir()
    with chdir(tmp_path):
        document = json.loads(report(name, "--json").stdout)
        terminal = report(name)
    parts = {
        "terminal": terminal.output,
        "json": json.dumps(document, indent=1),
        "tables": "\n".join(tables_of(folder)),
        "mlflow": "\n".join(runs_of_mlflow(runs)),
        "page": page_of(folder),
    }
    shown = "".join(f"==== {part}\n{text.rstrip()}\n" for part, text in parts.items())
    shown = "\n".join(line.rstrip() for line in shown.replace(str(tmp_path), "").splitlines())
    path = FROZEN / f"{name}.txt"
    if request.config.getoption("--rewrite-screens"):
        path.write_text(f"{shown}\n", encoding="utf-8")
    assert f"{shown}\n" == path.read_text(encoding="utf-8")
