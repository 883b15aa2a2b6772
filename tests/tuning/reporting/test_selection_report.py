from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.tuning import fakes
from tuning.algorithms.objectives import Objective
from tuning.reporting.selection_report import selection_table
from tuning.runs.records import SearchRecord, TrialRecord

SEARCH = fakes.search_record(Path("run"), ood_domains=("a", "b", "c"))
TABLE = [
    fakes.measured(0, 90, {"a": 60, "b": 50, "c": 40}),
    fakes.measured(1, 88, {"a": 70, "b": 40, "c": 55}),
    fakes.measured(2, 85, {"a": 50, "b": 66, "c": 52}),
    fakes.measured(3, 80, {"a": 54, "b": 53, "c": 52}),
]


def printed(search: SearchRecord, records: list[TrialRecord], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(selection_table(search, records, width))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines}


def test_there_is_a_row_a_rule_with_what_it_chose_and_may_say_of_it() -> None:
    found = rows(printed(SEARCH, TABLE))
    assert {rule: row[:-1] for rule, row in found.items()} == {
        "objective": ["001", "88.0", "55.0", "40.0", "-1.0", "-2.0", "yes"],
        "id_val": ["000", "90.0", "50.0", "40.0", "-6.0", "0.0", "no"],
        "ood_val": ["002", "85.0", "56.0", "50.0", "0.0", "-5.0", "yes"],
        "leave_one_domain_out": ["002, 001", "86.0", "47.3", "40.0", "-8.7", "-4.0", "yes"],
        "worst_domain": ["003", "80.0", "53.0", "52.0", "-3.0", "-10.0", "yes"],
        "pareto": ["3 trials", "85-90", "50-56", "40-50", "", "", "yes"],
    }


def test_the_caption_says_which_trial_is_judged_on_which_domain_and_what_the_front_is() -> None:
    text = " ".join(printed(SEARCH, TABLE).split())
    assert "leave_one_domain_out, chosen by the other domains: 002 for a, c; 001 for b." in text
    assert "pareto (ID, OOD mean): 000 (90.0, 50.0), 001 (88.0, 55.0), 002 (85.0, 56.0)." in text


def test_the_caption_says_where_the_search_itself_looked_at_ood_data() -> None:
    sentence = "Whatever the rule, the search that proposed the trials looked at OOD data."
    assert sentence in printed(SEARCH, TABLE)
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    assert sentence not in printed(blind, TABLE)


def test_an_absent_rule_says_why() -> None:
    search = replace(SEARCH, ood_domains=("a",))
    text = printed(search, TABLE)
    assert rows(text)["leave_one_domain_out"][:-1] == ["", "", "", "", "", "", "yes"]
    assert "Without leave_one_domain_out: it takes two OOD domains or more." in text
    assert "There is no trial to choose yet." in printed(SEARCH, [])


def test_choices_among_unfinished_trials_are_said_to_be_that() -> None:
    stopped = [replace(trial, outcome="stopped") for trial in TABLE]
    sentence = "No trial finished: chosen among those that got furthest."
    assert sentence in printed(SEARCH, stopped)
    assert sentence not in printed(SEARCH, TABLE)


def test_a_long_front_is_cut_short() -> None:
    records = [fakes.measured(n, 60 + n, dict.fromkeys("abc", 60 - n)) for n in range(30)]
    text = " ".join(printed(SEARCH, records).split())
    assert "029 (89.0, 31.0), 028 (88.0, 32.0)" in text
    assert "018 (78.0, 42.0) and 18 more." in text


def test_the_best_of_each_method_is_a_row_that_refers_to_their_own_table() -> None:
    text = printed(fakes.search_record(Path("run")), fakes.compared_methods())
    assert rows(text)["by_method"][:-1] == ["4 trials", "85-88", "58-64", "44-50", "", "", "yes"]
    assert "by_method: see the best of each method." in text
    assert "by_method" not in printed(SEARCH, TABLE)


@pytest.mark.parametrize("width", [200, 120, 80, 72])
def test_a_narrow_terminal_gets_whole_figures_in_fewer_columns(width: int) -> None:
    text = printed(SEARCH, TABLE, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("The highest accuracy in distribution." in text) == (width == 200)
