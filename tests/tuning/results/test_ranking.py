import math
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tuning.config.objectives import Objective, parse_constraint
from tuning.results.ranking import (
    accuracy_margin,
    best_trial,
    misses,
    on_bounds,
    pareto_front,
    ranked,
    stronger_reference,
)

GOAL = fakes.Search().goal


def constrained(*lines):
    parsed = tuple(parse_constraint(line, GOAL.zero_shot) for line in lines)
    return replace(GOAL, constraints=parsed)


def test_the_best_trial_is_best_at_its_last_step():
    peak = fakes.trial(1, curve=(fakes.report(120, 95, 95), fakes.report(240, 80, 60)))
    steady = fakes.trial(2, curve=(fakes.report(120, 80, 60), fakes.report(240, 82, 62)))
    assert best_trial(GOAL, [peak, steady]) == steady
    assert (peak.best("val/mean_acc", "max"), peak.best("val/mean_acc", "min")) == (95, 70)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_never_wins(bad):
    broken = fakes.trial(1, curve=(fakes.report(240, 99, 99) | {"val/mean_acc": bad},))
    assert best_trial(GOAL, [broken, fakes.trial(2)]) == fakes.trial(2)
    assert best_trial(GOAL, [broken]) is broken.best("val/mean_acc", "max") is None


def test_a_trial_within_the_constraints_wins():
    goal = constrained("id_val/acc >= 85")
    better, allowed = fakes.trial(1, 84.9, 90), fakes.trial(2, 85, 60)
    assert best_trial(goal, [better, allowed]) == allowed
    assert ranked(goal, [better, allowed]) == [allowed, better]


def test_the_smallest_sum_of_violations_wins():
    goal = constrained("id_val/acc >= 90", "ood_val/mean_acc >= 70")
    records = [fakes.trial(1, 90, 60), fakes.trial(2, 86, 66), fakes.trial(3, 80, 79)]
    # By 0 + 10, by 4 + 4, and by 10 + 0, whose objective is the best.
    assert best_trial(goal, records) == records[1]
    assert ranked(goal, records)[0] == records[1]


def test_the_best_of_a_constraint_needs_no_objective():
    goal = constrained("id_val/acc >= best - 1")
    diverged = fakes.trial(1, 90, math.nan)
    assert misses(goal, [diverged, fakes.trial(2, 88, 60)]) == {
        "trial-001": {},
        "trial-002": {"id_val/acc >= best - 1": pytest.approx(1)},
    }


def test_the_front_has_only_trials_that_can_be_chosen():
    both = (Objective("id_val/acc"), Objective("cost/seconds", "min"))
    goal = replace(constrained("ood_val/mean_acc >= 60"), objectives=both)

    def trial(number, id_acc, seconds, ood=65):
        report = fakes.report(240, id_acc, ood) | {"cost/seconds": seconds}
        return fakes.trial(number, curve=(report,))

    quick, good, dominated = trial(1, 80, 100), trial(2, 90, 300), trial(3, 80, 200)
    forbidden = trial(4, 99, 50, ood=59)
    pruned = replace(trial(5, 99, 10), outcome="pruned")
    records = [fakes.reference(), quick, good, dominated, forbidden, pruned]
    assert pareto_front(goal, records) == [quick, good]


def by_acc_and_nll(*values):
    """A search for high accuracy (percent) and low NLL, and trials with these values."""
    objectives = (Objective("id_val/acc"), Objective("id_val/nll", "min"))
    trials = [
        fakes.trial(number, curve=(fakes.report(240, acc, 60) | {"id_val/nll": nll},))
        for number, (acc, nll) in enumerate(values)
    ]
    return replace(GOAL, objectives=objectives), trials


def test_accuracy_in_percent_does_not_outweigh_nll():
    # Trial 1 loses a tenth of the range of the accuracies and gains nine tenths of the NLLs'.
    goal, trials = by_acc_and_nll((90, 0.60), (89, 0.33), (80, 0.30), (79, 0.50))
    assert best_trial(goal, trials) is trials[1]
    assert ranked(goal, trials)[0] is trials[1]
    assert ranked(goal, trials)[-1] is trials[3]  # the only one that others dominate
    rescaled = replace(goal, objectives=(Objective("acc"), Objective("id_val/nll", "min")))
    as_fractions = [
        replace(t, curve=({**t.metrics, "acc": t.metrics["id_val/acc"] / 100},)) for t in trials
    ]
    order = [record.trial_id for record in ranked(rescaled, as_fractions)]
    assert order == [record.trial_id for record in ranked(goal, trials)]


def test_each_objective_counts_by_its_range_not_its_size():
    goal, trials = by_acc_and_nll((100, 1.0), (95, 0.5), (92, 0.2), (90, 0.1))
    assert best_trial(goal, trials) is trials[1]  # 0.67 from the best values, the third 0.81


def test_dominated_trials_do_not_change_the_best():
    goal, trials = by_acc_and_nll((90, 0.60), (89, 0.33), (80, 0.30))
    _, worse = by_acc_and_nll((90, 0.60), (89, 0.33), (80, 0.30), (10, 0.6), (40, 9.0), (80, 0.3))
    assert best_trial(goal, worse) == trials[1]
    assert len(pareto_front(goal, worse)) == 4  # equal trials do not dominate each other


def test_a_trial_without_one_of_the_objectives_is_last():
    goal, trials = by_acc_and_nll((99, math.nan), (80, 0.5))
    assert ranked(goal, trials) == trials[::-1]
    assert best_trial(goal, trials) is trials[1]
    assert best_trial(goal, trials[:1]) is None


def test_a_reference_or_the_zero_shot_model_may_beat_every_trial():
    weak, strong = fakes.trial(1, 80.0, 55.0), fakes.trial(2, 90.0, 65.0)
    plain = fakes.reference(curve=(fakes.report(240, 88.0, 58.0),))  # mean 73

    def name(trial, goal=GOAL):
        found = stronger_reference(goal, [plain, trial])
        return None if found is None else found.trial_id

    assert name(weak) == "ft"
    assert name(strong) is None
    both = replace(GOAL, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    assert name(weak, both) == "ft"
    assert name(fakes.trial(1, 88.0, 58.0), both) is None  # equal
    assert name(fakes.trial(1, 80.0, 65.0), both) is None  # better in one of them
    assert name(weak, constrained("ood_val/mean_acc >= 60")) == "zero-shot"  # FT misses it; 71.7
    assert name(strong, constrained("id_val/acc >= 95")) is None  # nothing meets it
    assert name(strong, constrained("id_val/acc <= 89")) == "ft"  # only references meet it
    assert name(weak, replace(GOAL, objectives=(Objective("id_val/ece", "min"),))) is None
    assert stronger_reference(GOAL, [plain]) is None
    assert stronger_reference(GOAL, [plain, replace(weak, outcome="pruned")]) is None


@pytest.mark.parametrize(("right", "images"), [(0, 6), (3, 6), (24, 24), (700, 800)])
def test_the_margin_of_an_accuracy_is_that_of_wilson(right, images):
    low, high = binomtest(right, images).proportion_ci(method="wilson")
    margin = accuracy_margin(100 * right / images, images)
    assert margin == pytest.approx(100 * (high - low) / 2)


@pytest.mark.parametrize(("at_low", "named"), [(2, False), (3, True)])
def test_a_range_on_whose_bound_several_proposals_sit_is_named(at_low, named):
    space = SearchSpace(parameters={"optim.lr": Float(low=1e-5, high=1e-3, log=True)})
    lrs = [1e-5] * at_low + [1e-4, 1e-3, 1e-3]
    trials = [fakes.trial(n, params={"optim.lr": lr}) for n, lr in enumerate(lrs)]
    given = [fakes.trial(9, params={"optim.lr": 1e-3}, is_first_point=True)]
    line = f"optim.lr: 3 of {len(lrs)} proposals are at the lowest value, 1e-05"
    assert on_bounds({None: space}, trials + given) == ([line] if named else [])
