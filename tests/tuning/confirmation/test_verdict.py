"""Which model is recommended and exported, before and after `confirm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.tuning import fakes
from tuning.confirmation.results import ResultsFile, TestResult
from tuning.confirmation.verdict import verdict
from tuning.runs.records import SearchRecord, TrialRecord

SEEDS = (1000, 1001)


def searched(folder: Path, *trials: tuple[float, float]) -> tuple[SearchRecord, list[TrialRecord]]:
    """A search whose trials end at these ID and OOD accuracies, beside a reference at 88 / 57."""
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, 88.0, 57.0),))
    return fakes.search_record(folder), [ft, *(fakes.trial(i, *at) for i, at in enumerate(trials))]


def confirmed(folder: Path, **accs: tuple[float, float]) -> None:
    """Write results of `confirm`: mean validation accuracy over the seeds, and on the test splits.

    The seeds are two points apart.
    """
    with closing(ResultsFile(folder)) as results:
        for name, (validated, tested) in accs.items():
            trial_id = name.replace("_", "-")
            kind = "reference" if trial_id == "ft" else "trial"
            for seed, off in zip(SEEDS, (-1.0, 1.0), strict=True):
                metrics = {
                    "val/mean_acc": validated + off,
                    "id_test/acc": tested + off,
                    "ood_test/mean_acc": tested + off - 20,
                }
                labels = () if trial_id == "ft" else ("objective #1",)
                results.append(TestResult(trial_id, kind, seed, {}, labels, metrics))


def test_the_best_trial_is_confirmed_and_exported(tmp_path: Path) -> None:
    search, records = searched(tmp_path, (85.0, 62.0), (86.0, 64.0))
    found = verdict(search, records)
    assert found is not None
    assert (found.trial_id, found.label, found.why) == ("trial-001", "trial-001", search.selection)
    confirm, export = found.commands("mine")
    assert confirm.startswith("lipsum-tune confirm mine ")
    assert export.startswith("lipsum-tune export mine ")
    assert "trial-001" in export


def test_a_reference_that_beats_all_trials_is_what_is_exported(tmp_path: Path) -> None:
    search, records = searched(tmp_path, (85.0, 58.0), (86.0, 57.0))
    found = verdict(search, records)
    assert found is not None
    assert (found.trial_id, found.is_trial) == ("ft", False)
    assert found.why.startswith("No trial is better than FT, not tuned (lr = 1e-05): val/mean_acc")
    extend, export = found.commands("mine")
    assert extend.startswith("lipsum-tune extend mine --trials ")
    assert "# FT, not tuned (lr = 1e-05)" in export


def test_zero_shot_may_win(tmp_path: Path) -> None:
    search, records = searched(tmp_path, (80.0, 58.0))
    records[0] = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, 80.0, 57.0),))
    found = verdict(search, records)
    assert found is not None
    assert found.trial_id == "zero-shot"
    assert [command.split()[1] for command in found.commands("mine")] == ["extend", "export"]


def test_fresh_seeds_decide_and_test_splits_do_not(tmp_path: Path) -> None:
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))  # 73.5 and 73.0; FT 72.5
    confirmed(tmp_path, trial_000=(71.0, 95.0), trial_001=(71.5, 99.0), ft=(72.0, 60.0))
    found = verdict(search, records)
    assert found is not None
    assert found.trial_id == "ft"
    assert "as the mean over 2 fresh seeds" in found.why
    assert [command.split()[1] for command in found.commands("mine")] == ["extend", "export"]


def test_a_new_best_trial_is_not_judged_by_the_seeds_of_others(tmp_path: Path) -> None:
    search, records = searched(tmp_path, (85.0, 62.0), (89.0, 64.0))
    confirmed(tmp_path, trial_000=(71.0, 50.0), ft=(72.0, 60.0))
    found = verdict(search, records)
    assert found is not None
    assert (found.trial_id, found.why) == ("trial-001", search.selection)


def test_results_without_the_objective_choose_nothing(tmp_path: Path) -> None:
    search, records = searched(tmp_path, (85.0, 62.0))
    with closing(ResultsFile(tmp_path)) as results:
        tested = {"id_test/acc": 50.0, "id_val/acc": 50.0}
        results.append(TestResult("trial-000", "trial", 1000, {}, ("objective #1",), tested))
    found = verdict(search, records)
    assert found is not None
    assert (found.trial_id, found.why) == ("trial-000", search.selection)


@pytest.mark.slow
def test_a_search_that_loses_to_its_reference_exports_the_reference(
    images_root: Path, tmp_path: Path, local_ray: str
) -> None:
    """FT moves the features; the trials, whose learning rates are tiny, hardly do."""
    lr = "{optim.lr: {type: float, low: 1.0e-8, high: 1.0e-7, log: true}}"
    settings = {
        "trial.data.root": images_root, "trial.steps": 2, "trial.eval.every": 2,
        "trial.optim.batch_size": 8, "trial.method.text_count": 16,
        "search.space.parameters": lr, "search.scheduler": "{name: none}",
        "search.objective": "{metric: id_val/feature_distortion, mode: max}",
        "search.budget.trials": 2, "search.name": "mine",
    }  # fmt: skip
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def lipsum_tune(*words: str) -> str:
        command = [sys.executable, "-m", "tuning", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = lipsum_tune("search", "quickstart", *overrides)
    assert "lipsum-tune export mine --output model   # FT, not tuned (lr = 6e-04)" in said
    assert "lipsum-tune extend mine" in said
    assert "lipsum-tune confirm" not in said
    page = (tmp_path / "runs" / "mine" / "report" / "index.html").read_text()
    assert "# FT, not tuned (lr = 6e-04)" in page
    assert "--trial trial-" not in page

    assert "Model       ft. No trial is better than FT" in lipsum_tune(
        "export", "mine", "--output", "before"
    )
    card = (tmp_path / "before" / "README.md").read_text()
    assert "| parameters | `optim.lr` 0.0006 |" in card
    assert "test" not in card.partition("| accuracy")[2].partition("\n\n")[0]

    said = lipsum_tune("confirm", "mine", "--seeds", "2")
    assert "Best        FT, not tuned (lr = 6e-04). Chosen by" in said
    assert "over 2 fresh seeds" in said
    lipsum_tune("export", "mine", "--output", "after")
    about = json.loads((tmp_path / "after" / "classes.json").read_text())
    assert about["trial"] == "ft"
    card = (tmp_path / "after" / "README.md").read_text()
    results = (tmp_path / "runs" / "mine" / "confirm" / "results.jsonl").read_text().splitlines()
    accs = [r["metrics"]["id_test/acc"] for r in map(json.loads, results) if r["trial_id"] == "ft"]
    assert len(accs) == 2
    row = f"| FT, not tuned (lr = 6e-04), test, mean of 2 fresh trainings | {sum(accs) / 2:.1f} |"
    assert row in card
    assert "| zero-shot, test |" in card
    lipsum_tune("export", "mine", "--trial", "trial-000", "--output", "named")
    card = (tmp_path / "named" / "README.md").read_text()
    assert "| trial-000, test, mean of 2 fresh trainings |" in card
    assert row in card
