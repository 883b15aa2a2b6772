import numpy as np
import pytest

from tests.tuning.result_tables import cells
from tests.tuning.weights.real_runs import kept_weights, real_file, real_run
from trainers.checkpoints.format import PREDICTIONS
from trainers.data.storage import url_of
from trainers.evaluation.metrics import ID, MetricKey
from tuning.runs.checkpoint_home import TRAIN_FOLDER
from tuning.runs.run_folder import load_run
from tuning.views.html_report import REPORT_FILE, write_report
from tuning.views.predictions_report import (
    DomainPredictions,
    ModelPredictions,
    changes_table,
    confusions_table,
    kept_predictions,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])


def model(predicted, confidence):
    found = np.array(predicted)
    return ModelPredictions(found, np.full(len(found), confidence, np.float32), found == LABELS)


ANIMALS = DomainPredictions(
    "sketch",
    ("ant", "bee", "cat"),
    LABELS,
    best=model([0, 1, 1, 2, 1, 0, 2, 1], 0.7),
    zero_shot=model([1, 0, 1, 1, 1, 1, 0, 0], 0.5),
    rows=np.arange(8),
)


def test_changes_count_images_and_the_calibration_error():
    row = ["sketch", "8", "2", "2", "1", "3", "12.5", "32.5"]
    assert cells(changes_table([ANIMALS], "trial-000")) == [row]


def test_confusions_are_the_most_frequent_first():
    assert cells(confusions_table(ANIMALS, "trial-000")) == [
        ["ant", "bee", "2", "3", "4"],
        ["ant", "cat", "1", "0", "4"],
        ["bee", "ant", "1", "0", "2"],
        ["cat", "bee", "1", "0", "2"],
    ]


def test_bins_hold_all_images_at_either_end_of_confidence():
    confidence = np.array([0, 0.05, 0.5, 0.52, 0.99, 1], np.float32)
    correct = np.array([False, True, True, False, True, True])
    number, accuracy, mean = ModelPredictions(correct, confidence, correct).bins()
    assert number.tolist() == [2, 2, 2]
    assert accuracy.tolist() == [0.5, 0.5, 1]
    assert mean.tolist() == pytest.approx([0.025, 0.51, 0.995])


def test_the_page_shows_predictions_while_they_are_kept(images_root, tmp_path):
    folder, (record,) = real_run(tmp_path / "mine", real_file(images_root), [{"seed": 1}])
    run = load_run(folder)
    checkpoints = url_of(run.home, TRAIN_FOLDER)
    found = kept_predictions(checkpoints, record.trial_id)
    assert found is not None
    names = [ID, *run.search.ood_domains]
    for metrics, models in (
        (record.metrics, [domain.best for domain in found]),
        (run.search.zero_shot, [domain.zero_shot for domain in found]),
    ):
        for key, values in (
            ("acc", [100 * m.correct.mean() for m in models]),
            ("ece", [m.ece for m in models]),
        ):
            expected = [metrics[str(MetricKey("val", name, key))] for name in names]
            assert values == pytest.approx(expected, abs=1e-3)

    write_report(run.search, [record], tmp_path, checkpoints)
    page = (tmp_path / REPORT_FILE).read_text("utf-8")
    assert "reliability diagram of sketch" in page
    assert "<p>became right, " in page
    weights = kept_weights(folder, record.trial_id)
    assert weights is not None
    (weights / PREDICTIONS).unlink()
    write_report(run.search, [record], tmp_path, checkpoints)
    page = (tmp_path / REPORT_FILE).read_text("utf-8")
    assert "reliability diagram" not in page
    assert "Reliability diagrams and confusions are left out" in page
