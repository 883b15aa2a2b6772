from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuning import fakes
from tests.tuning.result_tables import printed
from tuning.config.objectives import Objective, parse_constraint
from tuning.views.leaderboard import leaderboard, report

SEARCH = fakes.search_record(Path("run"))
RECORDS = [
    fakes.trial(1, 80, 60),
    fakes.trial(2, 99, 99, outcome="failed", error="RuntimeError: boom"),
    fakes.trial(3, 88, 62),
    fakes.trial(4, 99, 99, outcome="pruned", curve=(fakes.report(40, 99, 99),)),
]


def lines(search, records, width=100, shown=None):
    """The rows below the header, each as its words."""
    text = printed(leaderboard(search, records, width, shown), width)
    body = text.split("──\n", 1)[1]
    return [line.split() for line in body.splitlines() if line.strip()]


def test_finished_trials_are_ranked_and_the_others_follow_without_accuracies():
    zero_shot, *rows = lines(SEARCH, RECORDS)
    assert zero_shot == ["zero-shot", "82.4", "61.0", "71.7"]
    assert [row[:2] for row in rows] == [
        ["1", "trial-003"], ["2", "trial-001"], ["-", "trial-004"], ["-", "trial-002"],
    ]  # fmt: skip
    assert rows[0][2:] == ["1", "8", "1e-05", "88.0", "62.0", "75.0", "finished"]
    assert rows[2][2:] == ["1", "8", "1e-05", "pruned", "at", "40"]


def test_plain_fine_tuning_is_labelled_as_untuned_and_has_its_learning_rate():
    _, reference, *_ = lines(SEARCH, [fakes.reference(), *RECORDS])
    assert reference == ["untuned", "FT", "1e-05", "88.6", "56.8", "72.7", "finished"]


def test_the_end_of_a_search_shows_the_best_few():
    *_, first, second, more = lines(SEARCH, RECORDS, shown=2)
    assert (first[1], second[1], more) == ("trial-003", "trial-001", ["...", "2", "more"])


def test_the_point_of_the_line_has_a_column():
    on_line = fakes.report(fakes.TOTAL_STEPS, 88.0, 62.0, **{"line/a": 0.6})
    _, row = lines(SEARCH, [fakes.trial(1, curve=(on_line,))])
    assert row[5:] == ["0.6", "88.0", "62.0", "75.0"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal_with_every_parameter(width):
    params = {f"method.weight_{index}": 0.123 for index in range(8)} | {"optim.lr": 1e-4}
    text = printed(report(SEARCH, [fakes.trial(1, params=params)], width), width)
    assert text.count("0.123") == 8


def test_heads_are_whole_beside_parameters_in_one_column():
    params = {f"method.weight_{index}": 0.123 for index in range(8)}
    head, *_ = printed(leaderboard(SEARCH, [fakes.trial(1, params=params)], 80), 80).splitlines()
    assert head.split() == ["#", "trial", "parameters", "ID", "OOD", "val/mean_acc"]


def test_an_accuracy_that_is_the_objective_is_not_repeated():
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    assert lines(blind, [fakes.trial(1)])[-1][-2:] == ["85.0", "62.0"]


def test_a_trial_that_misses_a_constraint_says_by_how_much():
    line = parse_constraint("id_val/acc >= 90", SEARCH.zero_shot)
    rows = lines(replace(SEARCH, constraints=(line,)), [fakes.trial(1, 88), fakes.trial(2, 91)])
    assert rows[1][1:2] + rows[2][1:2] == ["trial-002", "trial-001"]
    assert rows[2][-1] == "2"


def test_several_objectives_mark_the_front():
    both = (Objective("id_val/acc"), Objective("ood_val/mean_acc"))
    rows = lines(
        replace(SEARCH, objectives=both),
        [fakes.trial(1, 90, 50), fakes.trial(2, 80, 70), fakes.trial(3, 79, 49)],
    )
    assert {row[1]: "*" in row[0] for row in rows[1:]} == {
        "trial-001": True, "trial-002": True, "trial-003": False,
    }  # fmt: skip


def test_the_report_ends_with_the_answer_and_at_most_two_notes():
    records = [replace(record, is_first_point=True) for record in RECORDS]
    text = printed(report(SEARCH, [fakes.reference(), *records], shown=3, seconds=90), 120)
    assert len(text.splitlines()) <= 16
    title, *_, answer, limit, failed, given = text.splitlines()
    assert title.startswith("domainnet-vit-b32   4 trials: 2 finished, 1 pruned, 1 failed, in 1m")
    assert answer.startswith("trial-003 has +5.2 OOD and ")
    assert limit.startswith("Chosen on validation data")
    assert failed == "1 failed: trial-002, RuntimeError: boom"
    assert given.startswith("All trials are first points")


def test_no_number_is_shortened_beside_outcomes_on_80_columns():
    params = {"method.reg_weight": 0.0123, "method.smoothing": 0.1, "optim.lr": 3.33e-5}
    stopped = replace(fakes.trial(0, 80, 60), params=params, outcome="stopped")
    text = printed(leaderboard(SEARCH, [fakes.reference(), stopped], 80), 80)
    assert "…" not in text
    assert all(part in text for part in ("3.33e-05", "stopped at 240", "82.4"))
