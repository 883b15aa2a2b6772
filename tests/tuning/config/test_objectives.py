import math

import pytest

from tuning.config.objectives import (
    Objective,
    check_constraints,
    nll_of,
    parse_constraint,
)

KNOWN = (
    "ood_val/street view/acc",
    *("id_val/acc", "id_val/nll", "ood_val/mean_acc", "id_val/class_acc", "ood_val/mean_ece"),
    "train/reg",
)
ZERO_SHOT = {"id_val/acc": 53.0, "id_val/nll": 1.5, "ood_val/street view/acc": 40.0}


def parse(*lines):
    return [parse_constraint(line, KNOWN) for line in lines]


@pytest.mark.parametrize(
    ("line", "best", "bound"),
    [
        ("id_val/acc >= 60", None, 60.0),
        ("id_val/acc >= zero_shot.id_val/acc", None, 53.0),
        ("id_val/acc >= zero_shot.id_val/acc + 2.5", None, 55.5),
        ("id_val/acc>=best-0.5", 71.0, 70.5),
        ("id_val/nll <= best + 1e-1", 1.0, 1.1),
        ("id_val/acc >= best - 0.5", None, None),
        ("ood_val/street view/acc >= zero_shot.ood_val/street view/acc - 1", None, 39.0),
    ],
)
def test_a_bound_is_a_number_or_rests_on_the_zero_shot_model_or_the_best(line, best, bound):
    (constraint,) = parse(line)
    assert constraint.bound(ZERO_SHOT, best) == (None if bound is None else pytest.approx(bound))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective("val/mean_acc"), Objective("val/mean_nll", "min")),
        (Objective("id_val/acc"), Objective("id_val/nll", "min")),
        (Objective("ood_val/sketch/acc"), Objective("ood_val/sketch/nll", "min")),
        (Objective("id_val/class_acc"), None),
        (Objective("id_val/acc", "min"), None),
        (Objective("id_val/ece", "min"), None),
    ],
)
def test_an_accuracy_has_the_nll_of_the_same_images(objective, expected):
    assert nll_of([objective]) == expected
    assert nll_of([objective, Objective("id_val/nll", "min")]) is None


def test_a_violation_is_how_much_is_missing():
    least, most = parse("id_val/acc >= 60", "id_val/nll <= 2")
    assert least.violation(58.0, 60.0) == 2.0
    assert least.violation(61.0, 60.0) == -1.0
    assert most.violation(2.5, 2.0) == 0.5
    assert least.violation(math.nan, 60.0) == math.inf
    assert least.violation(None, 60.0) == math.inf
    assert least.violation(10.0, None) == 0.0  # no best yet


@pytest.mark.parametrize(
    ("line", "value", "best"),
    [("id_val/acc >= best - 0.3", 70.1, 70.4), ("id_val/nll <= best + 0.2", 0.3, 0.1)],
)
def test_a_value_exactly_at_its_bound_meets_it(line, value, best):
    (constraint,) = parse(line)
    assert constraint.violation(value, constraint.bound({}, best)) == 0.0
    worse = value - 1e-3 if constraint.mode == "max" else value + 1e-3
    assert constraint.violation(worse, constraint.bound({}, best)) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("id_val/acc > 60", "write it as"),
        ("id_val/acc >= best - x", "write it as"),
        ("id_val/acc >= nan", "write it as"),
        ("id_val/nll <= 1e999", "too large"),
        ("id_val/akk >= 60", "no trial reports 'id_val/akk'"),
        ("id_val/acc >= zero_shot.id_val/akk", "no trial reports 'id_val/akk'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line, said):
    with pytest.raises(ValueError, match=said) as error:
        parse(line)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("id_val/acc >= 101",), "cannot be met"),
        (("id_val/acc >= best + 5",), "cannot be met, not even by the best"),
        (("id_val/nll <= best - 0.1",), "cannot be met, not even by the best"),
        (("ood_val/mean_ece <= -1",), "cannot be met"),
        (("id_val/acc >= zero_shot.id_val/acc + 50",), "cannot be met"),
        (("id_val/acc >= 60", "id_val/acc <= 59"), "exclude each other"),
        (("id_val/acc >= zero_shot.id_val/acc", "id_val/acc <= 50"), "exclude each other"),
    ],
)
def test_what_no_trial_can_meet_is_refused(lines, said):
    with pytest.raises(ValueError, match=said):
        check_constraints(parse(*lines), ZERO_SHOT)


def test_what_can_be_met_is_not_refused():
    check_constraints(parse("train/reg >= 101"), ZERO_SHOT)
    check_constraints(parse("id_val/nll >= 101", "id_val/acc >= 60", "id_val/acc <= 60"), ZERO_SHOT)
    check_constraints(parse("id_val/acc >= zero_shot.id_val/acc + 50"))  # not known yet
