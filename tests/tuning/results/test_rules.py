import math
from dataclasses import replace

import numpy as np
import pytest

from tests.tuning import fakes
from tuning.config.objectives import Objective, parse_constraint
from tuning.results.rules import RULES, choices, saw_ood

GOAL = fakes.Search(ood_domains=("a", "b", "c")).goal
# ID accuracy, then a, b, c. The means of a, b, c are 50, 55, 56 and 53.
TABLE = [
    fakes.measured(0, 90, {"a": 60, "b": 50, "c": 40}),
    fakes.measured(1, 88, {"a": 70, "b": 40, "c": 55}),
    fakes.measured(2, 85, {"a": 50, "b": 66, "c": 52}),
    fakes.measured(3, 80, {"a": 54, "b": 53, "c": 52}),
]


def chosen(goal, records):
    return {choice.rule: choice for choice in choices(goal, records)}


def with_methods(*names):
    """The trials of the table, with these methods in turn."""
    return [
        replace(record, params={"method.name": names[record.number % len(names)]})
        for record in TABLE
    ]


def numbers(choice):
    return [trial.number for trial in choice.trials]


def figures(choice):
    return choice.id_acc, choice.ood_acc


def test_every_rule_is_there_in_a_fixed_order():
    found = [choice.rule for choice in choices(GOAL, with_methods("ft", "kd"))]
    assert found == list(RULES)
    for records in (TABLE, []):
        found = [choice.rule for choice in choices(GOAL, records)]
        assert found == [rule for rule in RULES if rule != "by_method"]


def test_the_pareto_front_has_all_its_members_and_no_single_figure():
    choice = chosen(GOAL, TABLE)["pareto"]  # trial 1 beats trial 3 in both
    assert numbers(choice) == [0, 1, 2]
    assert figures(choice) == (None, None)
    alone = chosen(GOAL, TABLE[:1])["pareto"]
    assert figures(alone) == (90, 50)
    level = fakes.measured(4, 88, {"a": 60, "b": 50, "c": 52})  # OOD 54, behind trial 1
    assert numbers(chosen(GOAL, [level, *TABLE])["pareto"]) == [0, 1, 2]


def test_by_method_chooses_by_the_objective_best_method_first():
    found = chosen(GOAL, with_methods("ft", "kd"))["by_method"]  # 70, 71.5, 70.5, 66.5
    assert numbers(found) == [1, 2]
    assert {name: trial.number for name, trial in found.parts.items()} == {"kd": 1, "ft": 2}
    assert figures(found) == (None, None)
    assert found.looks_at_ood
    blind = replace(GOAL, objectives=(Objective("id_val/acc"),))
    found = chosen(blind, with_methods("ft", "kd"))["by_method"]
    assert numbers(found) == [0, 1]
    assert not found.looks_at_ood


def test_by_method_may_choose_the_reference_of_a_method():
    untuned = fakes.measured(-1, 88, dict.fromkeys("abc", 58), kind="reference", trial_id="ft")
    found = chosen(GOAL, [untuned, *with_methods("ft", "kd")])["by_method"]  # 73
    assert [(name, one.trial_id) for name, one in found.parts.items()] == [
        ("ft", "ft"), ("kd", "trial-001"),
    ]  # fmt: skip
    others = chosen(GOAL, [untuned, *with_methods("l2_sp", "kd")])["by_method"]
    assert [*others.parts] == ["kd", "l2_sp"]  # a reference alone is no method of the search


def test_a_search_that_compares_no_methods_has_no_best_of_each():
    assert [c.rule for c in choices(GOAL, TABLE)].count("by_method") == 0


def test_a_method_without_a_finished_trial_has_no_choice():
    records = with_methods("ft", "kd", "l2_sp", "ema")
    records[0] = replace(records[0], outcome="pruned")
    records[1] = replace(records[1], outcome="failed")
    found = chosen(GOAL, records)["by_method"]
    assert list(found.parts) == ["l2_sp", "ema"]
    unfinished = [replace(record, outcome="stopped") for record in with_methods("ft", "kd")]
    assert list(chosen(GOAL, unfinished)["by_method"].parts) == ["kd", "ft"]


def test_a_best_within_a_method_is_that_of_the_method():
    """The ID accuracies of kd are all below the bound of ft, and its best one is not its choice."""
    limit = parse_constraint("id_val/acc >= best - 1", TABLE[0].metrics)
    goal = replace(GOAL, constraints=(limit,))
    records = [
        fakes.measured(n, id_acc, dict.fromkeys("abc", ood), params={"method.name": name})
        for n, (name, id_acc, ood) in enumerate(
            [("ft", 72.0, 42.0), ("kd", 70.0, 46.0), ("kd", 69.5, 57.0), ("kd", 60.0, 59.0)]
        )
    ]
    found = chosen(goal, records)["by_method"]
    assert {name: trial.number for name, trial in found.parts.items()} == {"ft": 0, "kd": 2}


def test_a_method_that_misses_constraints_has_its_closest_trial():
    limit = parse_constraint("id_val/acc <= 75", TABLE[0].metrics)
    found = chosen(replace(GOAL, constraints=(limit,)), with_methods("ft", "kd"))["by_method"]
    assert {name: trial.number for name, trial in found.parts.items()} == {"ft": 2, "kd": 3}


def test_all_rules_agree_with_numpy_on_random_trials():
    rng = np.random.default_rng(0)
    for _ in range(20):
        accs = rng.uniform(20, 90, (12, 4))  # ID, a, b, c
        records = [
            fakes.measured(n, float(row[0]), dict(zip("abc", map(float, row[1:]), strict=True)))
            for n, row in enumerate(accs)
        ]
        found = chosen(GOAL, records)
        in_domain, ood = accs[:, 0], accs[:, 1:]
        assert numbers(found["id_val"]) == [in_domain.argmax()]
        assert numbers(found["ood_val"]) == [ood.mean(1).argmax()]
        by_rest = [np.delete(ood, d, axis=1).mean(1).argmax() for d in range(3)]
        left_out = found["leave_one_domain_out"]
        assert [trial.number for trial in left_out.parts.values()] == by_rest
        assert left_out.ood_acc == pytest.approx(ood[by_rest, range(3)].mean())
        both = np.stack([in_domain, ood.mean(1)], 1)
        beaten = [bool((both > row).all(1).any()) for row in both]
        assert set(numbers(found["pareto"])) == {n for n in range(12) if not beaten[n]}


def test_of_equal_trials_the_earlier_wins_by_every_rule():
    twins = [replace(TABLE[2], trial_id=f"trial-{n:03d}", number=n) for n in (7, 5)]
    found = chosen(GOAL, twins)
    pareto = found.pop("pareto")
    assert all(numbers(choice) == [5] for choice in found.values())
    assert numbers(pareto) == [5, 7]  # neither beats the other


def test_means_that_differ_by_rounding_are_equal():
    accs = ({"a": 80.1, "b": 60.3, "c": 50}, {"a": 80.2, "b": 60.2, "c": 50})
    records = [fakes.measured(number, 90, of) for number, of in enumerate(accs)]
    assert np.mean([80.1, 60.3]) < np.mean([80.2, 60.2])
    assert chosen(GOAL, records)["leave_one_domain_out"].parts["c"].number == 0


def test_only_finished_trials_within_constraints_are_chosen():
    known = TABLE[0].metrics
    limit = parse_constraint("id_val/acc <= 87", known)
    goal = replace(GOAL, constraints=(limit,))
    lucky = {"a": 99, "b": 99, "c": 99}
    others = [
        fakes.measured(8, 86, lucky, outcome="pruned"),
        fakes.measured(9, 86, lucky, outcome="failed"),
        fakes.measured(-1, 86, lucky, kind="reference", trial_id="ft"),
    ]
    for choice in choices(goal, [*TABLE, *others]):
        assert set(numbers(choice)) <= {2, 3}
    assert numbers(chosen(goal, TABLE)["id_val"]) == [2]


def test_if_no_trial_finished_the_furthest_is_chosen():
    early = fakes.trial(1, 99, 99, outcome="pruned", curve=(fakes.report(40, 99, 99),))
    late = fakes.trial(2, 80, 60, outcome="stopped", curve=(fakes.report(120, 80, 60),))
    goal = fakes.Search().goal
    assert all(numbers(choice) == [2] for choice in choices(goal, [early, late]))


def test_a_rule_ignores_trials_without_its_metrics():
    diverged = fakes.measured(4, 95, {"a": 99, "b": 99, "c": math.nan})
    found = chosen(GOAL, [*TABLE, diverged])
    assert numbers(found["ood_val"]) == [2]
    assert numbers(found["pareto"]) == [0, 1, 2]
    # ID alone cannot know, nor can a and b; what they then have on c is no number.
    assert numbers(found["id_val"]) == [4]
    assert figures(found["id_val"]) == (95, None)
    left_out = found["leave_one_domain_out"]
    assert {d: t.number for d, t in left_out.parts.items()} == {"a": 2, "b": 1, "c": 4}
    assert figures(left_out) == pytest.approx((268 / 3, None))


def test_with_one_ood_domain_none_can_be_left_out():
    goal = replace(GOAL, ood_domains=("a",))
    found = chosen(goal, [fakes.measured(0, 90, {"a": 60}), fakes.measured(1, 80, {"a": 70})])
    assert found["leave_one_domain_out"].trials == ()
    assert numbers(found["ood_val"]) == [1]
    assert figures(found["id_val"]) == (90, 60)


def test_without_ood_domains_only_id_rules_choose():
    goal = replace(GOAL, ood_domains=(), objectives=(Objective("id_val/nll", "min"),))
    record = fakes.trial(1, curve=({"step": 240, "id_val/acc": 90.0, "id_val/nll": 0.3},))
    found = chosen(goal, [record])
    assert [rule for rule, choice in found.items() if choice.trials] == ["objective", "id_val"]
    assert figures(found["id_val"]) == (90, None)


def test_without_trials_no_rule_chooses():
    for choice in choices(GOAL, [fakes.trial(1, outcome="failed"), fakes.reference()]):
        assert choice.trials == ()
        assert figures(choice) == (None, None)


@pytest.mark.parametrize(
    ("line", "objective", "constraint", "blind"),
    [
        ("off", "val/mean_acc", None, {"id_val"}),
        ("off", "id_val/acc", None, {"id_val", "objective"}),
        ("off", "id_val/acc", "id_val/acc >= 50", {"id_val", "objective"}),
        ("off", "id_val/acc", "ood_val/a/acc >= 50", set()),
        ("auto", "val/mean_acc", None, set()),
        ([0.5], "val/mean_acc", None, set()),
        (0.5, "val/mean_acc", None, {"id_val"}),
        ("auto", "id_val/acc", None, {"id_val", "objective"}),
    ],
)
def test_rules_constraints_and_the_line_decide_whether_ood_data_is_used(
    line, objective, constraint, blind
):
    known = TABLE[0].metrics
    goal = replace(
        GOAL,
        objectives=(Objective(objective),),
        constraints=(parse_constraint(constraint, known),) if constraint else (),
        chooses_points=fakes.Search(config={"trial.eval.line": line}).goal.chooses_points,
    )
    assert saw_ood(goal) == ("objective" not in blind)
    found = chosen(goal, TABLE)
    assert {rule for rule, choice in found.items() if not choice.looks_at_ood} == blind
