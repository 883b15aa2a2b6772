"""The pages that `ui` opens, in a real browser: Debian's Chromium, without a display."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from tuning.execution.ray_session import free_port
from tuning.mlflow_logging.callback import MlflowCallback
from tuning.mlflow_logging.client import default_tracking_uri
from tuning.reporting.html_report import REPORT_FILE, write_report
from tuning.runs.run_folder import load_run

pytestmark = pytest.mark.cluster

LOADED_MS = 30_000
"""Time of the page, which passes at once while it waits for nothing."""


@pytest.fixture(scope="module")
def run(images_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [fakes.reference(), *fakes.finished_search()]
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", search_file(images_root), records)
    search = load_run(folder).search
    callback = MlflowCallback(default_tracking_uri(folder.parent), "lipsum-tune")
    callback.search_started(search)
    callback.search_ended(records, "finished")
    assert callback.num_pending == 0
    write_report(search, records, folder / "report")
    # A newer search that has nothing to show yet.
    write_run(folder.parent / "begun", search_file(images_root), zero_shot=None, outcome=None)
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """The address that `ui` prints; the server ends with the command."""
    command = [sys.executable, "-m", "tuning", "ui", str(run.parent), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if line.startswith("MLflow "))
        yield line.split()[1]
        server.terminate()  # not SIGINT, which a shell may have told its background jobs to ignore
    assert server.returncode == 128 + signal.SIGTERM


def page(address: str, profile: Path, last: str) -> tuple[str, list[str]]:
    """The text of a page once it has this last part, and the errors in its console."""
    for _ in range(10):  # a busy machine draws less of it in the time of the page
        text, errors = _load(address, profile)
        if last in text:
            break
    return text, errors


def _load(address: str, profile: Path) -> tuple[str, list[str]]:
    found = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1800,1000", f"--user-data-dir={profile}", "--enable-logging=stderr",
            f"--virtual-time-budget={LOADED_MS}", "--dump-dom", address,
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    console = [line for line in found.stderr.splitlines() if ":CONSOLE:" in line]
    # AG Grid says of each page of MLflow 3.17 that its settings are old.
    return found.stdout, [line for line in console if ":INFO:" not in line]


def test_the_first_page_has_id_and_ood_accuracy_of_all_trials_best_first(
    run: Path, address: str, tmp_path: Path
) -> None:
    text, errors = page(address, tmp_path, "trial-000")
    assert errors == []
    records = [r for r in load_run(run).history.records if r.kind == "trial"]
    value = {r.trial_id: r.metrics["val/mean_acc"] for r in records if r.curve}
    shown = re.findall(r"trial-\d{3}(?= )", text)
    assert set(shown) == {record.trial_id for record in records}
    order = list(dict.fromkeys(name for name in shown if name in value))
    assert [value[name] for name in order] == sorted(value.values(), reverse=True)
    assert "zero-shot" in text
    cells = set(re.findall(r"(?<=>)\d+(?:\.\d+)?(?=<)", text))
    best = next(record for record in records if record.trial_id == order[0])
    for metric in ("id_val/acc", "ood_val/mean_acc"):
        assert metric in text
        assert any(abs(float(cell) - best.metrics[metric]) < 1e-3 for cell in cells)


def test_the_charts_begin_with_ood_against_id_accuracy(address: str, tmp_path: Path) -> None:
    text, errors = page(f"{address}&compareRunsMode=CHART", tmp_path, "Parallel Coordinates")
    assert errors == []
    assert text.index("id_val/acc vs. ood_val/mean_acc") < text.index("Parallel Coordinates")


def test_the_report_draws_its_figures(run: Path, tmp_path: Path) -> None:
    text, errors = page((run / "report" / REPORT_FILE).as_uri(), tmp_path, "Curves")
    assert errors == []
    assert text.count("<img") >= 4
