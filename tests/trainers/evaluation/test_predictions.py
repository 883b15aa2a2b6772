"""The predictions that a run keeps after its last step, against the metrics of its report."""

import io
import json

import pyarrow.parquet as pq
import pytest

from tests.trainers.curves import short
from tests.trainers.measures_by_hand import binned_error
from trainers.checkpoints.format import PREDICTED_CLASSES, PREDICTIONS
from trainers.evaluation.metrics import ID, MetricKey
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.loop.measure import measure_zero_shot
from trainers.loop.setup import set_up


def test_they_have_the_accuracy_and_calibration_error_of_the_report(trial):
    config = short(trial, "ft", optim__lr=1e-3)
    images = load_split(config, "val")
    zero_shot = measure_zero_shot(set_up(config), images)
    *_, last = fine_tune(config)
    table = pq.read_table(io.BytesIO(last.evaluated.predictions))
    assert json.loads(table.schema.metadata[PREDICTED_CLASSES]) == {
        domain: list(of_domain.class_names) for domain, of_domain in images.items()
    }
    for domain, of_domain in images.items():
        rows = table.to_pandas()
        rows = rows[rows["domain"] == domain]
        assert list(rows["image"]) == list(range(len(of_domain)))
        assert list(rows["label"]) == list(of_domain.labels)
        name = ID if domain == config.data.id_domain else domain
        for metrics, predicted, confidence in (
            (last.metrics, "predicted", "confidence"),
            (zero_shot, "zero_shot", "zero_shot_confidence"),
        ):
            right = (rows[predicted] == rows["label"]).to_numpy()
            found = [100 * right.mean(), binned_error(right, rows[confidence].to_numpy())]
            expected = [metrics[str(MetricKey("val", name, key))] for key in ("acc", "ece")]
            assert found == pytest.approx(expected, abs=1e-3)


def test_those_of_a_final_split_take_their_place(trial, whole_root):
    config = short(trial, "ft", optim__lr=1e-3, data__root=str(whole_root), eval__line=0.5)
    *_, last = fine_tune(config)
    last = last.tested(load_split(config, "test"))
    metrics = last.metrics
    rows = pq.read_table(io.BytesIO(last.evaluated.predictions)).to_pandas()
    for prefix, column in (("", "predicted"), ("line/1/", "end")):
        right = (rows[column] == rows["label"]).groupby(rows["domain"], observed=True).mean()
        assert 100 * right["real"] == pytest.approx(metrics[f"{prefix}id_test/acc"])
        for domain in config.data.ood_domains:
            assert 100 * right[domain] == pytest.approx(metrics[f"{prefix}ood_test/{domain}/acc"])


def test_a_run_keeps_them_once_it_has_ended_alone(trial, tmp_path):
    """And still has them when it is saved again while it repeats its last report."""
    config = short(trial, "ft", steps=2, eval__every=1)
    first, last = (tmp_path / step for step in ("1", "2"))
    for report in fine_tune(config):
        report.save(tmp_path / str(report.step))
    assert not (first / PREDICTIONS).exists()
    (repeated,) = fine_tune(config, resume_from=last)
    repeated.save(tmp_path / "again")
    kept = (last / PREDICTIONS).read_bytes()
    assert (tmp_path / "again" / PREDICTIONS).read_bytes() == kept
