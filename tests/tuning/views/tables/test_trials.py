import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tuning import fakes
from tuning.runs.ranking import best_trial
from tuning.views.callback import ResultsCallback
from tuning.views.tables import arrow as parquet
from tuning.views.tables import trials as results
from tuning.views.tables.trials import curves_table, selection_table, trials_table, write_tables

SEARCH = fakes.search_record(Path("run"))


def test_the_trials_table_has_a_row_per_trial_and_zero_shot():
    records = fakes.finished_search()
    table = trials_table(SEARCH, records)
    rows = table.to_pylist()
    assert len(rows) == 1 + len(records)
    assert rows[0]["kind"] == "zero_shot"
    assert rows[0]["id_val/acc"] == 82.4
    assert rows[0]["method.reg_weight"] is None
    chosen = [row["trial_id"] for row in rows if row["is_best"]]
    assert chosen == [best_trial(SEARCH, records).trial_id]
    failed = next(row for row in rows if row["outcome"] == "failed")
    assert failed["error"].startswith("OutOfMemoryError")
    assert failed["seconds"] == 360.0


def test_column_types_do_not_depend_on_the_results():
    fixed = len(results._TRIAL_FIELDS)
    empty, full = trials_table(SEARCH, []), trials_table(SEARCH, fakes.finished_search())
    assert list(empty.schema)[:fixed] == list(full.schema)[:fixed]
    assert full.schema.field("method.text_length").type == pa.int64()
    assert full.schema.field("method.reg_weight").type == pa.float64()
    assert full.schema.field("val/mean_acc").type == pa.float64()
    assert json.loads(full.schema.metadata[b"lipsum_tune"])["sees_ood"] is True


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2.5], [1.0, 2.5]), ([True, False], [True, False]), ([1, "a"], ["1", "a"])],
)
def test_a_parameter_of_mixed_types_has_one_column(values, expected):
    records = [fakes.trial(i, params={"x.y": value}) for i, value in enumerate(values)]
    assert trials_table(SEARCH, records)["x.y"].to_pylist()[1:] == expected


def test_the_curves_table_has_a_row_per_report():
    gap = {"energy_gap/sketch": 0.5}
    curve = (fakes.report(40, 80, 60), fakes.report(80, 81, math.nan, **gap))
    trial = fakes.trial(1, curve=curve)
    rows = curves_table(SEARCH, [trial]).to_pylist()
    assert [(row["trial_id"], row["step"]) for row in rows] == [
        ("zero-shot", 0),
        (trial.trial_id, 40),
        (trial.trial_id, 80),
    ]
    assert [row["id_val/acc"] for row in rows] == [82.4, 80, 81]
    assert math.isnan(rows[2]["ood_val/mean_acc"])
    assert [row["energy_gap/sketch"] for row in rows] == [None, None, 0.5]


def test_a_failed_write_keeps_the_old_table(tmp_path, monkeypatch):
    trials, *_ = write_tables(tmp_path, SEARCH, [fakes.trial(1)])
    before = trials.read_bytes()

    def full_disk(table, file):
        file.write(b"half a ta")
        raise OSError("no space left on device")

    monkeypatch.setattr(parquet.pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_tables(tmp_path, SEARCH, fakes.finished_search())
    assert trials.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "trials.parquet",
        "curves.parquet",
        "selection.parquet",
    }


def outcomes(folder):
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    return {row["trial_id"]: row["outcome"] for row in rows[1:]}


def test_the_tables_have_all_trials_when_one_ends(tmp_path):
    earlier, one = fakes.trial(0, outcome="stopped"), fakes.trial(1)
    two = fakes.trial(2, outcome="running", ended_at=None)
    callback = ResultsCallback(tmp_path, [earlier], lambda: 0.0)
    callback.search_started(SEARCH)
    callback.trial_started(replace(two, curve=()))
    callback.trial_reported(two)
    assert not list(tmp_path.iterdir())
    callback.trial_ended(one)
    assert outcomes(tmp_path) == {
        "trial-000": "stopped", "trial-001": "finished", "trial-002": "running",
    }  # fmt: skip
    curves = pq.read_table(tmp_path / "curves.parquet")
    assert len(curves) == 1 + sum(len(record.curve) for record in (earlier, one, two))


@pytest.mark.parametrize(("took", "pause"), [(0.0, 10.0), (0.1, 10.0), (0.5, 25.0), (4.0, 200.0)])
def test_writes_are_ten_seconds_and_fifty_write_times_apart(tmp_path, monkeypatch, took, pause):
    now = 0.0

    def slow_write(*arguments):
        nonlocal now
        now += took
        write_tables(*arguments)

    monkeypatch.setattr("tuning.views.callback.write_tables", slow_write)
    callback = ResultsCallback(tmp_path, clock=lambda: now)
    callback.search_started(SEARCH)
    callback.trial_ended(fakes.trial(0))
    now += pause - 0.01
    callback.trial_ended(fakes.trial(1))
    assert len(outcomes(tmp_path)) == 1
    now += 0.02
    callback.trial_ended(fakes.trial(2))
    assert len(outcomes(tmp_path)) == 3


def test_at_the_end_the_tables_have_the_records_given(tmp_path):
    callback = ResultsCallback(tmp_path, clock=lambda: 0.0)
    callback.search_started(SEARCH)
    callback.trial_ended(fakes.trial(1))
    callback.search_ended([fakes.trial(1), fakes.trial(2, outcome="stopped")], "stopped")
    assert outcomes(tmp_path) == {"trial-001": "finished", "trial-002": "stopped"}


def test_the_selection_table_has_a_row_per_chosen_trial():
    search = replace(SEARCH, ood_domains=("a", "b"))
    records = [
        fakes.measured(0, 90, {"a": 60, "b": 40}),
        fakes.measured(1, 80, {"a": 50, "b": 55}),
    ]
    rows = selection_table(search, records).to_pylist()
    columns = ("rule", "trial_id", "left_out", "id_acc", "ood_acc", "worst_acc", "gap", "id_gap")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("objective", "trial-000", None, 90, 50, 40, -2.5, 0),
        ("id_val", "trial-000", None, 90, 50, 40, -2.5, 0),
        ("ood_val", "trial-001", None, 80, 52.5, 50, 0, -10),
        ("leave_one_domain_out", "trial-001", "a", 80, 50, 50, -7.5, -5),
        ("leave_one_domain_out", "trial-000", "b", 90, 40, 40, -7.5, -5),
        ("pareto", "trial-000", None, 90, 50, 40, None, None),
        ("pareto", "trial-001", None, 80, 52.5, 50, None, None),
    ]
    assert [row["looks_at_ood"] for row in rows] == [True, False] + 5 * [True]


def test_a_rule_without_a_choice_has_a_row_with_a_reason():
    search = replace(SEARCH, ood_domains=("a",))
    rows = selection_table(search, [fakes.measured(0, 90, {"a": 60})]).to_pylist()
    (absent,) = [row for row in rows if row["trial_id"] is None]
    assert absent["rule"] == "leave_one_domain_out"
    assert absent["reason"] == "it needs at least two OOD domains"
    assert len(selection_table(search, [])) == 5


def test_the_selection_table_has_the_methods_of_trials():
    rows = selection_table(SEARCH, fakes.compared_methods()).to_pylist()
    assert [(row["method"], row["number"]) for row in rows if row["rule"] == "by_method"] == [
        ("carot", 7),
        ("lipsum_ft", 6),
        ("kd", 5),
        ("ft", 4),
    ]
    assert {row["method"] for row in rows if row["rule"] == "id_val"} == {"ft"}
