"""Run folders of earlier versions, kept in `kept/`: later versions read and report them.

`python -m tests.tuning.log.test_kept_runs 0.3.0` writes the folder of a version, before its
release. It is not written again later.
"""

import json
import shutil
import sys
from contextlib import chdir, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from tests.conftest import CLASSES
from tests.images import write_first_images
from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tests.tuning.run_folders import search_file, trial, write_run
from tuning.log.environment import ENVIRONMENT_FILE, environment
from tuning.log.journal import Journal
from tuning.log.paths import CONFIG_FILE, CONFIRM_FOLDER
from tuning.log.records import TESTED, Chosen, Model
from tuning.results.model import chosen_event
from tuning.results.rules import saw_ood
from tuning.run import load_run

KEPT = Path(__file__).parent / "kept"
OUTCOMES = {
    "ft": ("finished", 72.7),
    "trial-000": ("finished", 73.75),
    "trial-001": ("pruned", 72.13),
    "trial-002": ("failed", -1.0),
    "trial-003": ("finished", 74.5),
    "trial-004": ("stopped", 71.71),
}
"""Outcome and last `val/mean_acc`, -1 without one."""


def write(folder, version):
    """A search with each kind of event, and its confirmation."""
    curve = {"step": [39, 40], "train/loss": [2.0, 1.5]}

    def short(record, steps, **changes):
        """With few reports, so that the file is small."""
        kept = tuple(point for point in record.curve if point["step"] in steps)
        return replace(record, curve=kept, **changes)

    records = [
        short(fakes.reference(), (40, 240)),
        short(trial(0, 85.0, 62.5), (40, 240), is_first_point=True),
        short(trial(1, 84.0, 62.0), (40, 80), outcome="pruned"),
        short(trial(2, 0, 0), (), outcome="failed", error="OutOfMemoryError: too big\nat line 7"),
        short(trial(3, 85.5, 63.5), (40, 240), gpus=1.0),
        short(trial(4, 82.5, 61.0), (40,), outcome="stopped"),
    ]
    with TemporaryDirectory() as images, chdir(images):
        write_first_images(Path("images"), CLASSES, train=6, val=3, test=2)
        file = search_file("images", search__name="kept", search__budget__trials=6)
        write_run(folder, file, records, outcome=None, train_curve=curve)
        described = environment(file.trial)
    config = folder / CONFIG_FILE
    config.write_text(config.read_text().replace(f"{Path(images).resolve()}/", ""))
    described["packages"]["lipsum-tune"] = version
    of_machine = ("platform", "git_commit")
    kept = {key: value for key, value in described.items() if key not in of_machine}
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(kept, indent=2) + "\n")
    journal = Journal(folder)
    journal.session_started(file.fingerprints(), {"sampler": "TPESampler"})
    journal.used_ood()
    journal.controlled({"stop": "trial-001"}, "1.json")
    journal.session_ended("stopped")
    journal.close()
    reports = {s: fakes.report(240, 0, 0) | {"id_test/acc": 80.0 + s} for s in (0, 1)}
    found = {("zero-shot", None): {"step": 0, "id_test/acc": 75.0}}
    found |= {(one, 1000 + s): reports[s] for s in (0, 1) for one in ("ft", "trial-000")}
    write_results(folder, found)
    training = {"name": "trial-003", "method": "lipsum_ft", "seed": 0, "point": None}
    chosen = Chosen("single", {"val/mean_acc": 74.5}, (training | {"params": {}},))
    with closing(Journal(folder / CONFIRM_FOLDER)) as journal:
        journal.model(chosen_event(Model(1, chosen, finished=2)))
        journal.model({"event": TESTED, "number": 1, "metrics": {"id_test/acc": 81.5}})
    (folder / "report").rmdir()
    for lock in folder.rglob("journal.lock"):
        lock.unlink()


@pytest.mark.parametrize("version", sorted(path.name for path in KEPT.iterdir()))
def test_a_run_folder_of_an_earlier_version_is_read_and_reported(version, tmp_path):
    folder = shutil.copytree(KEPT / version, tmp_path / "runs" / "kept")
    assert yaml.safe_load((folder / CONFIG_FILE).read_text())["version"] == version
    run = load_run(folder)
    records = {record.trial_id: record for record in run.history.records}
    last = {name: round(r.last("val/mean_acc") or -1.0, 2) for name, r in records.items()}
    assert {name: (r.outcome, last[name]) for name, r in records.items()} == OUTCOMES
    assert records["trial-002"].error_line == "OutOfMemoryError: too big"
    assert records["trial-000"].is_first_point
    assert (run.history.outcome, run.history.damage) == ("stopped", "")
    assert saw_ood(run.goal)
    assert run.best.trial_id == "trial-003"
    found = run.settings
    assert found.values("trial-000", "id_test/acc") == {1000: 80.0, 1001: 81.0}
    (model,) = run.models
    (training,) = model.chosen.trainings
    assert (training["name"], model.test) == ("trial-003", {"id_test/acc": 81.5})
    shown = CliRunner().invoke(app, ["report", str(folder)])
    assert shown.exit_code == 0, shown.exception
    assert "stopped" in shown.output
    assert "Confirmed on fresh seeds" in (folder / "report" / "index.html").read_text()


if __name__ == "__main__":
    _, version = sys.argv
    with patch("tuning.log.folder.package_version", lambda _: version):
        write(KEPT / version, version)
