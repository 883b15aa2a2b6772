import re
from dataclasses import replace
from pathlib import Path

import numpy as np
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
            "No trial is better than untuned FT: val/mean_acc 72.7 against 60 of trial-001.",
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


IMAGES = {"real": 800, **dict.fromkeys(fakes.DOMAINS, 800)}


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (
            (88.9, 61.2),
            "4.4 ± 2.4 points more OOD accuracy than untuned FT, "
            "at the same ID accuracy within ± 3.1.",
        ),
        (
            (90.0, 57.6),
            "the same ID accuracy as untuned FT within ± 3.0, "
            "at the same OOD accuracy within ± 2.4.",
        ),
        (
            (85.0, 60.6),
            "3.8 ± 2.4 points more OOD accuracy than untuned FT, "
            "at 3.6 ± 3.3 points less ID accuracy.",
        ),
    ],
)
def test_a_difference_within_its_uncertainty_is_none(best, expected):
    search = replace(SEARCH, val_images=IMAGES)
    first, _ = answer(search, [fakes.reference(), fakes.trial(3, *best)])
    assert first == f"trial-003 has {expected}"


def test_the_uncertainty_holds_for_two_models_of_equal_accuracy():
    """On other images, and the more so on the same ones."""
    rng = np.random.default_rng(0)
    rights = rng.binomial(800, 0.7, (2, 4, 20_000)) / 8  # two models, four domains
    gaps = (rights[0] - rights[1]).mean(axis=0)
    first, _ = answer(
        replace(SEARCH, val_images=IMAGES),
        [fakes.measured(1, 70.0, dict.fromkeys(fakes.DOMAINS, 70.0), kind="reference"),
         fakes.measured(3, 90.0, dict.fromkeys(fakes.DOMAINS, 70.0))],
    )  # fmt: skip
    margin = float(re.search(r"the same OOD accuracy within ± (.*)\.$", first)[1])
    assert (np.abs(gaps) <= margin).mean() == pytest.approx(0.95, abs=0.015)


def test_the_limit_says_whether_ood_data_chose():
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    _, limit = answer(blind, [fakes.trial(1)])
    assert limit.startswith("Chosen on validation data. Confirm it")
