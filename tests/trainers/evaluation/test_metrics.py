"""Names of metrics and their directions."""

import pytest

from trainers.evaluation.metrics import ID, MEAN_ID_OOD, MEAN_OOD, MetricKey, direction


@pytest.mark.parametrize(
    ("name", "key", "better"),
    [
        ("id_val/acc", ("val", ID, "acc"), "max"),
        ("id_test/nll", ("test", ID, "nll"), "min"),
        ("ood_val/sketch/ece", ("val", "sketch", "ece"), "min"),
        ("ood_test/a_b/ece", ("test", "a_b", "ece"), "min"),
        ("ood_val/mean_class_acc", ("val", MEAN_OOD, "class_acc"), "max"),
        ("val/mean_nll", ("val", MEAN_ID_OOD, "nll"), "min"),
        *((f"ood_val/{name}/acc", ("val", name, "acc"), "max") for name in ("id", "mean", "both")),
    ],
)
def test_a_name_is_its_key(name, key, better):
    assert MetricKey.parse(name) == MetricKey(*key)
    assert str(MetricKey(*key)) == name
    assert direction(name) == better


@pytest.mark.parametrize(
    "name",
    [
        *("train/loss", "line/a", "id_train/acc", "id_val", "id_val/", "ood_val/acc", "val/acc"),
        *("id_val/sketch/acc", "id_a_val/acc", "a_val/mean_acc", "val/sketch/mean_acc"),
    ],
)
def test_no_other_name_is_a_key(name):
    assert MetricKey.parse(name) is None
    assert direction(name) is None
