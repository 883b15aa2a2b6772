"""Searches that are interrupted, killed, resumed and extended, as real processes on a real Ray.

Slow: every start of a driver is that of a Ray cluster and of a trial's processes, half a minute.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from tests.benchmarks.kills import disagreements, search_with_kills
from tests.tuning.execution.test_run_search import configuration, outcomes
from tuning.config.validation import load_config
from tuning.execution.run_search import run_search
from tuning.runs.journal import JOURNAL_FILE, is_running
from tuning.runs.resume import resume_search
from tuning.runs.run_folder import load_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def write(root: Path, storage: Path, name: str, **search: object) -> Path:
    """A configuration of a search that keeps its runs in `storage`."""
    values = configuration(root, storage)
    values["search"] |= {
        "name": name,
        "objective": {"metric": "val/mean_acc"},
        "budget": {"trials": 3},
        **search,
    }
    path = storage / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.cluster
def test_a_driver_killed_again_and_again_loses_nothing_and_does_nothing_twice(
    images_root: Path, tmp_path: Path
) -> None:
    # `python -m tests.benchmarks.kills` does the same with ten kills and the whole benchmark.
    config = write(images_root, tmp_path, "killed")
    folder = search_with_kills(config, tmp_path, kills=2, seed=1)
    assert disagreements(folder) == []


def test_an_interrupted_search_goes_on_where_it_was_and_can_then_be_extended(
    images_root: Path, tmp_path: Path
) -> None:
    config = write(images_root, tmp_path, "stopped", references=[])
    folder = tmp_path / "stopped"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tuning", "search", str(config)], stdout=subprocess.DEVNULL
    )
    while not any(record.curve for record in reported(folder)):
        assert driver.poll() is None
        time.sleep(0.2)
    assert is_running(folder)
    driver.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    assert load_run(folder).history.outcome == "stopped"

    found = resume_search(folder, console=Console(quiet=True))
    assert found.outcome == "finished"
    assert disagreements(folder) == []
    before = (folder / JOURNAL_FILE).read_text()

    narrowed = ["search.budget.trials=4", "search.space.parameters.method.reg_weight.low=1.0"]
    extended = resume_search(folder, narrowed, extend=True, console=Console(quiet=True))
    assert len(extended.records) == 4
    assert extended.records[3].params["method.reg_weight"] >= 1.0
    assert [r.params for r in extended.records[:3]] == [r.params for r in found.records]
    added = (folder / JOURNAL_FILE).read_text().removeprefix(before)
    started = [line for line in map(json.loads, added.splitlines()) if line["event"] == "started"]
    assert [line["trial"] for line in started] == ["trial-003"]
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert len(rows) == 1 + 4


def reported(folder: Path) -> list:  # type: ignore[type-arg]
    if not (folder / JOURNAL_FILE).exists():
        return []
    try:
        return list(load_run(folder).history.records)
    except Exception:
        return []


def test_a_budget_ends_the_search_now_and_more_of_it_takes_it_up_again_from_where_data_are_now(
    images_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(images_root, tmp_path / "images"))
    config = write(root, tmp_path, "timed", references=[], budget={"trials": 2, "hours": 1e-9})
    found = run_search(load_config(config), console=Console(quiet=True))
    assert found.outcome == "finished"
    assert "search.budget.hours" in str(found.ended_by)
    assert Counter(outcomes(found).values())["finished"] == 0
    moved = root.rename(tmp_path / "moved")  # which its trials read from now on
    changes = ["search.budget.hours=1", f"trial.data.root={moved}", "trial.data.workers=1"]
    more = resume_search(found.run_folder, changes, console=Console(quiet=True))
    assert set(outcomes(more).values()) <= {"finished", "pruned"}
    assert len(more.records) == 2
    assert disagreements(found.run_folder) == []


def test_methods_are_searched_in_turn_and_one_that_is_added_later_catches_up(
    images_root: Path, tmp_path: Path
) -> None:
    methods = {"methods": ["ft", "lipsum_ft"]}
    more = {"space": methods, "references": [], "budget": {"trials": 2}}
    config = write(images_root, tmp_path, "methods", scheduler={"name": "none"}, **more)
    found = run_search(load_config(config), console=Console(quiet=True))
    assert outcomes(found) == {"trial-000": "finished", "trial-001": "finished"}
    added = ["search.budget.trials=4", "search.space.methods=[ft, lipsum_ft, kd]"]
    extended = resume_search(found.run_folder, added, extend=True, console=Console(quiet=True))
    assert disagreements(found.run_folder) == []
    trained = [record.params["method.name"] for record in extended.records]
    assert trained == ["ft", "lipsum_ft", "kd", "ft"]
    # What was trained is what was proposed: plain fine-tuning alone has no regulariser.
    regularisers = [record.last("train/reg") for record in extended.records]
    assert [bool(reg) for reg in regularisers] == [False, True, True, False]
    rows = pq.read_table(found.run_folder / "trials.parquet").to_pylist()
    by_method = {row["trial_id"]: row["method.name"] for row in rows[1:]}
    assert list(by_method.values()) == trained
