"""Callbacks and loggers of Ray Tune that a user passes to a search, on a real Ray."""

import csv

import pytest
from ray import tune
from ray.tune.logger import CSVLoggerCallback, TBXLoggerCallback

from tests.tuning.execution.instant import instant_file, resume_instantly, run_instantly
from tests.tuning.execution.slot import EVERY, STEPS, values

pytestmark = pytest.mark.ray


class Ended(tune.Callback):
    def __init__(self):
        self.trials = []

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.trials.append(trial.config["trial_id"])


class Down(tune.Callback):
    """A tracker that is down."""

    def on_trial_result(self, iteration, trials, trial, result, **info):
        raise ConnectionError("refused")


@pytest.mark.usefixtures("local_ray")
def test_loggers_of_tune_write_the_reports_of_every_trial(images_root, tmp_path, caplog):
    file, ended = instant_file(images_root, tmp_path), Ended()
    callbacks = [CSVLoggerCallback(), TBXLoggerCallback(), Down(), ended]
    found = run_instantly(file, tune_callbacks=callbacks)
    (session,) = (found.run.folder / "tune").iterdir()
    for record in found.run.history.records:
        folder = session / record.trial_id
        assert list(folder.glob("events.out.tfevents.*"))
        with (folder / "progress.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        assert [int(row["step"]) for row in rows] == list(range(EVERY, STEPS + 1, EVERY))
        for row, report in zip(rows, record.curve, strict=True):
            assert {k: float(row[k]) for k in report} == pytest.approx(report)
            assert "train_curve" not in row
        assert float(rows[-1]["val/mean_acc"]) == pytest.approx(
            values({"optim": {"lr": record.params["optim.lr"]}}, STEPS)["val/mean_acc"]
        )
    assert ended.trials == [record.trial_id for record in found.run.history.records]
    (line, *_) = "\n".join(m for m in caplog.messages if "Down" in m).splitlines()
    assert line == "Down failed at on_trial_result"

    again = Ended()
    more = resume_instantly(found.run.folder, "search.budget.trials=4", tune_callbacks=[again])
    assert again.trials == [more.run.history.records[-1].trial_id]
    assert len(list((found.run.folder / "tune").iterdir())) == 2
