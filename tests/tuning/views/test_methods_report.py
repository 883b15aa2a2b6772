from dataclasses import replace
from pathlib import Path

from tests.tuning import fakes
from tests.tuning.result_tables import cells, column, notes
from tuning.config.objectives import Objective, parse_constraint
from tuning.views.methods_report import methods_table

SEARCH = fakes.search_record(
    Path("run"),
    zero_shot=fakes.report(0, 82.4, 61.0, **{"id_val/ece": 2.5, "ood_val/mean_ece": 7.0}),
)


def table_of(records, search=SEARCH):
    table = methods_table(search, records)
    assert table is not None
    return table


def changed(which, records, **changes):
    return [replace(r, **changes) if which(r) else r for r in records]


def of(method):
    return lambda record: record.params.get("method.name") == method


def test_each_method_has_a_row_with_its_best_trial():
    table = table_of(fakes.compared_methods())
    # A trial's own clock says 360 s at its last step; from start to end it took as much.
    time = ["6m 00s", "12m 00s"]
    assert cells(table) == [
        ["zero-shot", "-", "-", "-", "82.4", "61.0", "71.7", "2.5", "7.0", "-", "-"],
        ["FT, not tuned (lr = 1e-05)", "-", "-", "-",
         "88.6", "56.8", "72.7", "-", "-", "6m 00s", "-"],
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
    assert "Chosen by the highest val/mean_acc at the last step" in notes(table)
    assert "Equal numbers of trials, 2 per method: finished/pruned/failed." in notes(table)


def test_there_is_no_table_for_a_single_method():
    assert methods_table(SEARCH, fakes.finished_search()) is None
    assert methods_table(SEARCH, []) is None
    assert methods_table(SEARCH, [r for r in fakes.compared_methods() if of("kd")(r)]) is None


def test_training_on_validation_labels_is_noted():
    note = "tpgm also trains on ID validation labels"
    records = fakes.compared_methods()
    assert note not in notes(table_of(records))
    params = {"method.name": "tpgm", "optim.lr": 1e-5}
    assert note in notes(table_of(changed(of("kd"), records, params=params)))


def test_the_objective_decides_the_order():
    calibrated = replace(SEARCH, objectives=(Objective("id_val/ece", "min"),))
    records = fakes.compared_methods()
    order = ["ft", "kd", "lipsum_ft", "carot"]
    table = table_of(records, calibrated)
    assert column(table, "method")[2:] == order
    assert column(table, "objective") == ["2.5", "-", "3.0", "4.0", "5.0", "6.0"]
    both = replace(SEARCH, objectives=(Objective("id_val/nll", "min"), Objective("id_val/acc")))
    assert "The objective shown is the first one." in notes(table_of(records, both))


def test_unequal_numbers_of_trials_are_noted():
    records = changed(lambda r: r.number == 3, fakes.compared_methods(), outcome="running")
    text = notes(table_of(records[:-2]))  # the second trials of carot and lipsum_ft are missing
    assert "Unequal numbers of trials, 2 per method but " in text
    assert "lipsum_ft 1" in text
    assert "carot 1" in text
    assert "of which 1 have not ended" in text


def test_the_outcomes_of_the_trials_are_counted():
    records = fakes.compared_methods(3)
    records = changed(lambda r: r.number == 1, records, outcome="pruned")
    records = changed(lambda r: r.number in (2, 5), records, outcome="failed")
    counts = {row[0]: row[1] for row in cells(table_of(records))[2:]}
    assert counts == {"ft": "3/0/0", "kd": "1/1/1", "lipsum_ft": "2/0/1", "carot": "3/0/0"}


def test_a_method_without_a_finished_trial_is_last_and_marked():
    records = fakes.compared_methods()
    short = records[-1].curve[:1]
    records = changed(of("carot"), records, outcome="pruned", curve=short)
    table = table_of(records)
    *_, last = cells(table)
    assert last[:3] == ["carot", "0/2/0", "trial-003*"]
    assert last[4:6] == ["80.0", "60.0"]
    assert "* No trial of the method finished" in notes(table)


def test_a_method_whose_trials_all_failed_has_counts_alone():
    table = table_of(changed(of("carot"), fakes.compared_methods(), outcome="failed"))
    assert cells(table)[-1] == ["carot", "0/0/2", *["-"] * 8, "12m 00s"]


def test_methods_that_miss_the_constraints_are_last_and_named():
    limit = parse_constraint("id_val/acc >= 86.6", SEARCH.zero_shot)
    table = table_of(fakes.compared_methods(), replace(SEARCH, constraints=(limit,)))
    assert column(table, "method")[2:] == ["kd", "ft", "lipsum_ft", "carot"]
    assert "No trial meets the constraints: lipsum_ft, carot." in notes(table)
    limit = parse_constraint("id_val/acc >= best - 0.5", SEARCH.zero_shot)  # of each method
    table = table_of(fakes.compared_methods(), replace(SEARCH, constraints=(limit,)))
    assert "No trial meets" not in notes(table)
