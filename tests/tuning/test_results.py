from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tuning import fakes
from tuning import results
from tuning.records import TrialRecord
from tuning.results import TablesListener, best_trial, curves_table, trials_table, write_tables

SEARCH = fakes.search_record(Path("run"))


def test_the_best_trial_is_chosen_at_the_last_step_not_at_the_peak() -> None:
    peak = fakes.trial(1, curve=(fakes.report(120, 95, 95), fakes.report(240, 80, 60)))
    steady = fakes.trial(2, curve=(fakes.report(120, 80, 60), fakes.report(240, 82, 62)))
    assert best_trial(SEARCH, [peak, steady]) == steady
    assert peak.best("val/mean_acc", "max") == 95


def test_a_lower_objective_is_better_where_the_search_says_so() -> None:
    search = replace(SEARCH, objective_mode="min")
    low, high = fakes.trial(1, 80, 60), fakes.trial(2, 88, 62)
    assert best_trial(search, [low, high]) == low


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_never_wins(bad: float) -> None:
    broken = fakes.trial(1, curve=(fakes.report(240, 99, 99) | {"val/mean_acc": bad},))
    assert best_trial(SEARCH, [broken, fakes.trial(2)]) == fakes.trial(2)
    assert best_trial(SEARCH, [broken]) is None


def test_references_and_unfinished_trials_do_not_win_over_finished_ones() -> None:
    others = [
        fakes.reference(curve=(fakes.report(240, 99, 99),)),
        fakes.trial(1, 99, 99, outcome="pruned"),
        fakes.trial(2, 99, 99, outcome="failed"),
    ]
    assert best_trial(SEARCH, [*others, fakes.trial(3)]) == fakes.trial(3)


def test_where_none_finished_the_best_of_those_that_got_furthest_wins() -> None:
    early = fakes.trial(1, outcome="pruned", curve=(fakes.report(40, 99, 99),))
    late = fakes.trial(2, outcome="stopped", curve=(fakes.report(120, 80, 60),))
    assert best_trial(SEARCH, [early, late]) == late
    assert best_trial(SEARCH, [fakes.trial(1, outcome="failed")]) is None
    assert best_trial(SEARCH, []) is None


def test_of_equal_trials_the_earlier_wins() -> None:
    assert best_trial(SEARCH, [fakes.trial(5), fakes.trial(4)]) == fakes.trial(4)


def test_the_trials_table_has_a_row_a_trial_under_the_zero_shot_row() -> None:
    records = fakes.finished_search()
    table = trials_table(SEARCH, records)
    rows = table.to_pylist()
    assert len(rows) == 1 + len(records)
    assert rows[0]["kind"] == "zero_shot"
    assert rows[0]["id_val/acc"] == 82.4
    assert rows[0]["method.reg_weight"] is None
    chosen = [row["trial_id"] for row in rows if row["is_best"]]
    assert chosen == [best_trial(SEARCH, records).trial_id]  # type: ignore[union-attr]
    failed = next(row for row in rows if row["outcome"] == "failed")
    assert failed["error"].startswith("OutOfMemoryError")
    assert failed["seconds"] == 360.0


def test_the_types_of_the_columns_do_not_depend_on_what_happened() -> None:
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
def test_a_parameter_of_mixed_types_still_has_one_column(
    values: list[object], expected: list[object]
) -> None:
    records = [fakes.trial(i, params={"x.y": value}) for i, value in enumerate(values)]
    assert trials_table(SEARCH, records)["x.y"].to_pylist()[1:] == expected


def test_the_curves_table_has_a_row_a_report_and_a_column_a_metric() -> None:
    trial = fakes.trial(1, curve=(fakes.report(40, 80, 60), fakes.report(80, 81, math.nan)))
    rows = curves_table(SEARCH, [trial]).to_pylist()
    assert [(row["trial_id"], row["step"]) for row in rows] == [
        ("zero-shot", 0),
        (trial.trial_id, 40),
        (trial.trial_id, 80),
    ]
    assert [row["id_val/acc"] for row in rows] == [82.4, 80, 81]
    assert math.isnan(rows[2]["ood_val/mean_acc"])


def test_a_metric_that_a_report_lacks_is_null() -> None:
    curve = (fakes.report(40, 80, 60), fakes.report(80, 80, 60, **{"energy_gap/sketch": 0.5}))
    table = curves_table(SEARCH, [fakes.trial(1, curve=curve)])
    assert table["energy_gap/sketch"].to_pylist() == [None, None, 0.5]


def test_a_failed_write_keeps_the_old_table_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, _ = write_tables(tmp_path, SEARCH, [fakes.trial(1)])
    before = trials.read_bytes()

    def full_disk(table: object, path: Path) -> None:
        Path(path).write_text("half a ta")
        raise OSError("no space left on device")

    monkeypatch.setattr(results.pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_tables(tmp_path, SEARCH, fakes.finished_search())
    assert trials.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"trials.parquet", "curves.parquet"}


def outcomes(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    return {row["trial_id"]: row["outcome"] for row in rows[1:]}


def test_the_tables_are_written_at_every_end_with_running_trials_in_them(tmp_path: Path) -> None:
    def running(number: int) -> TrialRecord:
        return fakes.trial(number, outcome="running", ended_at=None)

    one, two = fakes.trial(1), fakes.trial(2)
    listener = TablesListener(tmp_path, earlier=[fakes.trial(0)])
    listener.search_started(SEARCH)
    listener.trial_started(running(1))
    listener.trial_started(running(2))
    assert not (tmp_path / "trials.parquet").exists()
    listener.trial_ended(one)
    assert outcomes(tmp_path) == {
        fakes.trial(0).trial_id: "finished",
        one.trial_id: "finished",
        two.trial_id: "running",
    }
    listener.search_ended([one, replace(two, outcome="stopped")], "stopped")
    assert outcomes(tmp_path) == {one.trial_id: "finished", two.trial_id: "stopped"}
