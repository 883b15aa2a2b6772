import csv
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import result
from tuning.results.ranking import best_trial
from tuning.views import tables
from tuning.views.tables import curves_table, results_table, trials_table, write_table, write_tables

SEARCH = fakes.Search()


def test_the_trials_table_has_a_row_per_trial_and_zero_shot():
    records = fakes.finished_search()
    rows = trials_table(SEARCH.run(records)).to_pylist()
    assert len(rows) == 1 + len(records)
    first = ("zero_shot", 82.4, None)
    assert (rows[0]["kind"], rows[0]["id_val/acc"], rows[0]["number"]) == first
    chosen = [row["trial_id"] for row in rows if row["is_best"]]
    assert chosen == [best_trial(SEARCH.goal, records).trial_id]
    failed = next(row for row in rows if row["outcome"] == "failed")
    assert failed["error"].startswith("OutOfMemoryError")
    assert failed["seconds"] == 360.0


def test_column_types_do_not_depend_on_the_results():
    fixed = len(tables._TYPES)
    empty, full = trials_table(SEARCH.run([])), trials_table(SEARCH.run(fakes.finished_search()))
    assert list(empty.schema)[:fixed] == list(full.schema)[:fixed]
    assert full.schema.field("method.text_length").type == pa.int64()
    assert full.schema.field("method.reg_weight").type == pa.float64()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2.5], [1.0, 2.5]), ([True, False], [True, False]), ([1, "a"], ["1", "a"])],
)
def test_a_parameter_of_mixed_types_has_one_column(values, expected):
    records = [fakes.trial(i, params={"x.y": value}) for i, value in enumerate(values)]
    assert trials_table(SEARCH.run(records))["x.y"].to_pylist()[1:] == expected


def test_the_curves_table_has_a_row_per_report():
    curve = (fakes.report(40, 80, 60), fakes.report(80, 81, math.nan, **{"top5/sketch": 0.5}))
    rows = curves_table(SEARCH.run([fakes.trial(1, curve=curve)])).to_pylist()
    assert [(row["trial_id"], row["step"]) for row in rows] == [
        ("zero-shot", 0), ("trial-001", 40), ("trial-001", 80),
    ]  # fmt: skip
    assert [row["id_val/acc"] for row in rows] == [82.4, 80, 81]
    assert math.isnan(rows[2]["ood_val/mean_acc"])
    assert [row["top5/sketch"] for row in rows] == [None, None, 0.5]


def test_csv_has_the_rows_of_parquet(tmp_path):
    write_tables(tmp_path, SEARCH.run(fakes.finished_search()))
    for name in ("trials", "curves"):
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        expected = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert [row["trial_id"] for row in rows] == [row["trial_id"] for row in expected]
        assert [float(row["id_val/acc"] or "nan") for row in rows] == pytest.approx(
            [row["id_val/acc"] for row in expected], nan_ok=True
        )


def test_results_of_confirm_have_a_row_each_and_mixed_choices_are_text(tmp_path):
    keys = [("zero-shot", None), ("ft", 1000), ("trial-000", 1000), ("trial-001", 1001)]
    given = [{}, {"compile": True}, {"eval.line": "off"}, {"eval.line": 0.5}]
    results = {
        key: result(key, {"id_test/acc": 80.0}, params=params)
        for key, params in zip(keys, given, strict=True)
    }
    write_table(tmp_path, "results", results_table(results))
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["trial_id"], row["seed"]) for row in rows] == keys
    assert [row["kind"] for row in rows] == ["zero_shot", "reference", "trial", "trial"]
    assert [row["eval.line"] for row in rows] == [None, None, "off", "0.5"]
    assert [row["compile"] for row in rows] == [None, True, None, None]
    assert (rows[2]["labels"], rows[2]["id_test/acc"]) == ("objective #1", 80.0)
