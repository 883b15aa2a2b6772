from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuning import fakes
from tuning.config.objectives import Objective, parse_constraint
from tuning.views.answer import answer

SEARCH = fakes.search_record(Path("run"))


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (
            (88.6, 61.0),
            "has 4.2 points more OOD accuracy than untuned FT, at the same ID accuracy.",
        ),
        ((87.6, 60.8), "has 4.0 points more OOD accuracy than untuned FT, at 1.0 point less ID"),
        ((95.0, 57.0), "has 6.4 points more ID accuracy than untuned FT, at 0.2 points more OOD"),
    ],
)
def test_the_gain_over_plain_fine_tuning_is_said_in_words(best, expected):
    first, limit = answer(SEARCH, [fakes.reference(), fakes.trial(3, *best)])
    assert first.startswith(f"trial-003 {expected}")
    assert limit.startswith("Chosen on validation data, OOD included.")


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [fakes.trial(3, 84.4, 61.0)],
            "trial-003 has 2.0 points more ID accuracy than zero-shot, at the same OOD accuracy.",
        ),
        (
            [fakes.reference(), fakes.trial(1, 70.0, 50.0)],
            "untuned FT is better than every trial: val/mean_acc 72.7 against 60.",
        ),
        ([fakes.trial(1, outcome="pruned")], "No trial has finished yet."),
    ],
)
def test_what_there_is_is_compared(records, expected):
    assert answer(SEARCH, records)[0] == expected


def test_missed_constraints_are_named():
    line = parse_constraint("id_val/acc >= 90", SEARCH.zero_shot)
    search = replace(SEARCH, constraints=(line,))
    first, _ = answer(search, [fakes.trial(1, 88.0, 62.0), fakes.trial(2, 80.0, 70.0)])
    assert first == (
        "No trial meets the constraints: trial-001 comes closest and misses id_val/acc >= 90 by 2."
    )


def test_the_limit_names_the_margin_and_whether_ood_data_chose():
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),), val_images={"real": 800})
    _, limit = answer(blind, [fakes.trial(1)])
    assert limit.startswith("Chosen on validation data; accuracies are ± 3.5 points at most.")
