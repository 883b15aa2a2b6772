from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from tests.tuning import fakes
from tuning.views.cost import MIN_TRIALS, cost_sentences, gain_of_doubling

SEARCH = fakes.search_record(Path("run"))
(OBJECTIVE,) = SEARCH.objectives


def trials(number):
    draws = np.random.default_rng(0).normal(60, 1, number)
    return [fakes.trial(index, 85, draw) for index, draw in enumerate(draws)]


@pytest.mark.parametrize("number", [MIN_TRIALS, MIN_TRIALS + 1])
@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_the_gain_is_the_mean_over_all_halves(mode, sign, number):
    search = replace(SEARCH, objectives=(replace(OBJECTIVE, mode=mode),))
    records = trials(number)
    values = [sign * record.metrics[OBJECTIVE.metric] for record in records]
    halves = combinations(values, number // 2)
    expected = max(values) - fmean(max(half) for half in halves)
    unfinished = fakes.trial(99, 99 * sign, 99 * sign, outcome="pruned")
    assert gain_of_doubling(search, [*records, unfinished]) == pytest.approx(expected)


def test_few_trials_or_several_objectives_have_no_estimate():
    assert gain_of_doubling(SEARCH, trials(MIN_TRIALS - 1)) is None
    several = replace(SEARCH, objectives=(OBJECTIVE, OBJECTIVE))
    assert gain_of_doubling(several, trials(MIN_TRIALS)) is None
    assert len(cost_sentences(several, trials(MIN_TRIALS))) == 1


def test_the_cost_is_shared_between_training_evaluation_and_the_rest():
    costs = {"cost/seconds": 270.0, "cost/eval_seconds": 90.0}
    curve = (fakes.report(240, 85, 61) | costs,)
    record = fakes.trial(0, curve=curve, gpus=2.0)  # of 360 s
    assert cost_sentences(SEARCH, [record]) == [
        "All trials together took 0.2 GPU-hours: training and checkpoints 50%, evaluation 25%, "
        "starting and waiting 25%.",
        "What more trials would gain is estimated from 8 finished trials on.",
    ]
    cheap = replace(record, gpus=0.0)
    assert cost_sentences(SEARCH, [cheap])[0].startswith("All trials together took 6m 00s: ")
    unreported = fakes.trial(1, curve=(), outcome="failed")  # it took 360 s, too
    assert cost_sentences(SEARCH, [cheap, unreported])[0].startswith(
        "All trials together took 12m 00s: training and checkpoints 25%, evaluation 12%, "
    )
    assert cost_sentences(SEARCH, []) == []
