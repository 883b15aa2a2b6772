from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.tuning import fakes
from tuning.algorithms.objectives import Objective, parse_constraint
from tuning.reporting.formatting import format_params, short_names
from tuning.reporting.methods_report import method_rows, methods_table
from tuning.runs.records import SearchRecord, TrialRecord

SEARCH = fakes.search_record(
    Path("run"),
    zero_shot=fakes.report(0, 82.4, 61.0, **{"id_val/ece": 2.5, "ood_val/mean_ece": 7.0}),
)


def printed(search: SearchRecord, records: list[TrialRecord], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    table = methods_table(search, records, width)
    assert table is not None
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def cells(text: str) -> list[list[str]]:
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def changed(
    which: Callable[[TrialRecord], bool], records: list[TrialRecord], **changes: object
) -> list[TrialRecord]:
    return [replace(r, **changes) if which(r) else r for r in records]  # type: ignore[arg-type]


def of(method: str) -> Callable[[TrialRecord], bool]:
    return lambda record: record.params.get("method.name") == method


def test_a_row_a_method_with_its_best_trial_stands_under_the_models_to_compare_with() -> None:
    text = printed(SEARCH, fakes.compared_methods())
    # A trial's own clock says 360 s at its last step; from start to end it took as much.
    time = ["6m 00s", "12m 00s"]
    assert cells(text) == [
        ["zero-shot", "", "", "", "82.4", "61.0", "71.7", "2.5", "7.0", "", ""],
        ["ft, reference", "", "", "", "88.6", "56.8", "72.7", "", "", "6m 00s", ""],
        ["carot", "2/0/0", "trial-007",
         "lr=2e-05 orthogonality_weight=0.2 distillation_weight=1.5",
         "85.1", "64.1", "74.6", "6.0", "13.0", *time],
        ["lipsum_ft", "2/0/0", "trial-006", "lr=2e-05 reg_weight=0.7 text_length=8",
         "86.1", "62.1", "74.1", "5.0", "12.0", *time],
        ["kd", "2/0/0", "trial-005", "lr=2e-05 reg_weight=1.2",
         "87.1", "60.1", "73.6", "4.0", "11.0", *time],
        ["ft", "2/0/0", "trial-004", "lr=2e-05",
         "88.1", "58.1", "73.1", "3.0", "10.0", *time],
    ]  # fmt: skip
    assert "Chosen by the highest val/mean_acc at the last step, which looks at OOD" in text
    assert "Equal numbers of trials, 2 a method: finished/pruned/failed." in text


def test_a_method_that_learns_on_validation_labels_is_said_to() -> None:
    said = "tpgm is trained on ID validation labels too"
    records = fakes.compared_methods()
    assert said not in printed(SEARCH, records)
    params = {"method.name": "tpgm", "optim.lr": 1e-5}
    assert said in printed(SEARCH, changed(of("kd"), records, params=params))


def test_there_is_no_table_where_all_trials_have_one_method() -> None:
    assert methods_table(SEARCH, fakes.finished_search()) is None
    assert methods_table(SEARCH, []) is None
    assert methods_table(SEARCH, [r for r in fakes.compared_methods() if of("kd")(r)]) is None


def test_another_objective_finds_other_trials_in_another_order() -> None:
    calibrated = replace(SEARCH, objectives=(Objective("id_val/ece", "min"),))
    records = fakes.compared_methods()
    assert [row.method for row in method_rows(calibrated, records)] == [
        "ft", "kd", "lipsum_ft", "carot",
    ]  # fmt: skip
    text = printed(calibrated, records)
    assert [row[6] for row in cells(text)] == ["2.5", "", "3.0", "4.0", "5.0", "6.0"]
    both = replace(SEARCH, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    text = printed(both, records)
    assert [row[6] for row in cells(text)] == ["", "72.7", "74.6", "74.1", "73.6", "73.1"]
    assert "The objective is the mean of them." in text


def test_unequal_numbers_of_trials_are_named_and_those_that_have_not_ended_counted() -> None:
    records = changed(lambda r: r.number == 3, fakes.compared_methods(), outcome="running")
    text = printed(SEARCH, records[:-2])  # the second trials of carot and lipsum_ft are missing
    assert "Unequal numbers of trials, 2 a method but " in text
    assert "lipsum_ft 1" in text
    assert "carot 1" in text
    assert "of which 1 have not ended" in text
    assert "The best of more is better by luck alone." in text
    assert "Equal" not in text


def test_what_became_of_the_trials_is_counted() -> None:
    records = fakes.compared_methods(3)
    records = changed(lambda r: r.number == 1, records, outcome="pruned")
    records = changed(lambda r: r.number in (2, 5), records, outcome="failed")
    counts = {row[0]: row[1] for row in cells(printed(SEARCH, records))}
    assert counts == {
        "zero-shot": "", "ft, reference": "",
        "ft": "3/0/0", "kd": "1/1/1", "lipsum_ft": "2/0/1", "carot": "3/0/0",
    }  # fmt: skip


def test_a_method_whose_trials_were_all_cut_short_comes_last_with_a_mark() -> None:
    records = fakes.compared_methods()
    short = records[-1].curve[:1]
    records = changed(of("carot"), records, outcome="pruned", curve=short)
    text = printed(SEARCH, records)
    *_, last = cells(text)
    assert last[:3] == ["carot", "0/2/0", "trial-003*"]
    assert last[4:6] == ["80.0", "60.0"]
    assert "* No trial of the method finished: this is the one that got furthest." in text


def test_a_method_whose_trials_all_failed_is_there_without_a_trial() -> None:
    text = printed(SEARCH, changed(of("carot"), fakes.compared_methods(), outcome="failed"))
    *_, last = cells(text)
    assert last == ["carot", "0/0/2", *[""] * 8, "12m 00s"]


def test_methods_that_miss_the_constraints_stand_below_and_are_named() -> None:
    limit = parse_constraint("id_val/acc >= best - 1.5", SEARCH.zero_shot)  # 86.6
    constrained = replace(SEARCH, constraints=(limit,))
    text = printed(constrained, fakes.compared_methods())
    assert [row[0] for row in cells(text)[2:]] == ["kd", "ft", "lipsum_ft", "carot"]
    assert "No trial meets the constraints: lipsum_ft, carot." in text
    assert "No trial meets" not in printed(SEARCH, fakes.compared_methods())


@pytest.mark.parametrize("width", [200, 130, 100, 80, 60])
def test_a_narrow_terminal_gets_whole_figures_in_fewer_columns(width: int) -> None:
    text = printed(SEARCH, fakes.compared_methods(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("Left out for want of room: parameters" in text) == (width < 130)
    assert ("objective" in cells(text)[0] or "71.7" in text) == (width > 80)
    assert "61.0" in text
    # Between two parameters the line may break, inside one it may not.
    assert ("distillation_weight=1.5" in text) == (width >= 130)


def test_parameters_have_short_names_where_these_are_their_own() -> None:
    keys = ["method.name", "optim.lr", "method.lr", "method.reg_weight"]
    assert short_names(keys) == ["method", "optim.lr", "method.lr", "reg_weight"]
    params = {"method.name": "kd", "optim.lr": 1.234567e-5, "seed": 3}
    assert format_params(params) == "method=kd lr=1.23e-05 seed=3"
    assert format_params(params, but=["seed", "method.name"]) == "lr=1.23e-05"
