from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuning import fakes
from tests.tuning.result_tables import cells, notes
from tuning.config.objectives import Objective, parse_constraint
from tuning.views.selection_report import selection_table

SEARCH = fakes.search_record(Path("run"), ood_domains=("a", "b", "c"))
TRIALS = [
    fakes.measured(0, 90, {"a": 60, "b": 50, "c": 40}),
    fakes.measured(1, 88, {"a": 70, "b": 40, "c": 55}),
    fakes.measured(2, 85, {"a": 50, "b": 66, "c": 52}),
    fakes.measured(3, 80, {"a": 54, "b": 53, "c": 52}),
]


def rows(table):
    """Rule -> cells but the description."""
    return {row[0]: row[1:-1] for row in cells(table)}


def test_each_rule_has_a_row_with_its_choice():
    assert rows(selection_table(SEARCH, TRIALS)) == {
        "objective": ["001", "88.0", "55.0", "40.0", "-1.0", "-2.0", "yes"],
        "id_val": ["000", "90.0", "50.0", "40.0", "-6.0", "0.0", "no"],
        "ood_val": ["002", "85.0", "56.0", "50.0", "0.0", "-5.0", "yes"],
        "leave_one_domain_out": ["002, 001", "86.0", "47.3", "40.0", "-8.7", "-4.0", "yes"],
        "pareto": ["3 trials", "85-90", "50-56", "40-50", "-", "-", "yes"],
    }


def test_the_notes_list_the_trials_by_domain_and_the_front():
    text = notes(selection_table(SEARCH, TRIALS))
    assert "leave_one_domain_out, chosen by the other domains: 002 for a, c; 001 for b." in text
    assert "pareto (ID, OOD mean): 000 (90.0, 50.0), 001 (88.0, 55.0), 002 (85.0, 56.0)." in text


@pytest.mark.parametrize(
    ("changes", "outcome", "note"),
    [
        (
            {"constraints": (parse_constraint("id_val/acc >= 80", ["id_val/acc"]),)},
            "finished",
            "All rules choose among the trials with id_val/acc >= 80",
        ),
        (
            {"ood_domains": ("a",)},
            "finished",
            "leave_one_domain_out: it needs at least two OOD domains.",
        ),
        ({}, "stopped", "No trial finished"),
    ],
)
def test_what_limits_the_choice_is_noted(changes, outcome, note):
    trials = [replace(trial, outcome=outcome) for trial in TRIALS]
    table = selection_table(replace(SEARCH, **changes), trials)
    assert note in notes(table)
    assert note not in notes(selection_table(SEARCH, TRIALS))
    assert (rows(table)["leave_one_domain_out"][0] == "-") == ("ood_domains" in changes)


def test_a_search_that_used_ood_data_is_noted():
    note = "The search used OOD validation data"
    assert note in notes(selection_table(SEARCH, TRIALS))
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    assert note not in notes(selection_table(blind, TRIALS))
    assert selection_table(SEARCH, []) is None


def test_a_long_front_is_cut_short():
    records = [fakes.measured(n, 60 + n, dict.fromkeys("abc", 60 - n)) for n in range(30)]
    text = notes(selection_table(SEARCH, records))
    assert "029 (89.0, 31.0), 028 (88.0, 32.0)" in text
    assert "018 (78.0, 42.0) and 18 more." in text


def test_the_best_of_each_method_is_one_row():
    search = fakes.search_record(Path("run"))
    table = selection_table(search, fakes.compared_methods())
    assert rows(table)["by_method"] == ["4 trials", "85-88", "58-64", "44-50", "-", "-", "yes"]
    assert "by_method" in notes(table)
    assert "by_method" not in rows(selection_table(SEARCH, TRIALS))
