import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tuning import fakes
from tuning.config.objectives import parse_constraint
from tuning.runs.ranking import ranked
from tuning.selection.beliefs import MIN_TRIALS, beliefs
from tuning.views.html_report import belief_sentence

SEARCH = fakes.search_record(Path("run"))
(OBJECTIVE,) = SEARCH.objectives


def trials(noise, number=24, sign=1.0):
    """Accuracy is the highest at the learning rate 1e-4, 4 points above that of the ends."""
    rng = np.random.default_rng(0)
    found = []
    for index, unit in enumerate(np.linspace(-1, 1, number)):
        accuracy = sign * (60 - 4 * unit**2 + noise * rng.standard_normal())
        params = {"method.reg_weight": 1.0, "optim.lr": float(1e-4 * 10**unit)}
        found.append(fakes.trial(index, accuracy, accuracy, params=params))
    return found


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_without_noise_the_best_trial_is_nearly_sure(mode, sign):
    search = replace(SEARCH, objectives=(replace(OBJECTIVE, mode=mode),))
    best, *others = beliefs(search, trials(noise=0.0, number=9, sign=sign))
    assert best.trial.trial_id == "trial-004"
    assert best.chance > 0.9
    assert best.mean == pytest.approx(60 * sign, abs=0.2)
    assert best.chance + sum(belief.chance for belief in others) == pytest.approx(1)


def lucky_trials():
    """Near an end of the range, where 57.8 is true, a lucky training is measured as the best."""
    records = trials(noise=1.0)
    records[3] = fakes.trial(3, 61.5, 61.5, params=records[3].params)
    return records


def test_noise_is_not_taken_for_a_better_configuration():
    records = lucky_trials()
    assert max(records, key=lambda r: r.metrics[OBJECTIVE.metric]) is records[3]
    found = {belief.trial.trial_id: belief for belief in beliefs(SEARCH, records)}
    assert found["trial-003"].mean < 60.5
    assert found["trial-003"].chance < 0.15
    assert sum(found[f"trial-{number:03d}"].chance for number in range(4, 20)) > 0.7


def test_the_best_expectation_is_first_not_the_best_chance():
    found = beliefs(SEARCH, lucky_trials())
    assert [b.mean for b in found] == sorted((b.mean for b in found), reverse=True)
    assert 6 <= found[0].trial.number <= 17  # within 1 of the best, which is in the middle


@pytest.mark.parametrize(
    "records",
    [
        trials(0.0, number=MIN_TRIALS - 1),
        [replace(r, params={"optim.lr": 1e-4}) for r in trials(0.0)],  # nothing varies
        [replace(r, params={"precision": ("fp32", "bf16")[r.number % 2]}) for r in trials(0.0)],
        [replace(r, params={"head.bias": r.number % 2 == 0}) for r in trials(0.0)],
        [replace(r, curve=trials(0.0)[0].curve) for r in trials(0.0)],  # all equally good
    ],
)
def test_no_belief_without_enough_trials_and_numbers(records):
    assert beliefs(SEARCH, records) == ()
    assert belief_sentence(SEARCH, records) is None


def test_several_objectives_have_no_best_trial():
    several = replace(SEARCH, objectives=(OBJECTIVE, replace(OBJECTIVE, metric="id_val/acc")))
    assert beliefs(several, trials(0.0)) == ()


def test_the_sentence_names_the_expected_and_the_measured_best():
    text, expected = belief_sentence(SEARCH, lucky_trials()), beliefs(SEARCH, lucky_trials())[0]
    assert text is not None
    assert re.findall(r"trial-\d+", text) == [expected.trial.trial_id, "trial-003"]
    assert f"with a probability of {expected.chance:.0%}" in text
    assert "`lipsum-tune confirm --top 3` compares" in text
    sure = belief_sentence(SEARCH, trials(0.0, number=9))
    assert sure is not None
    assert "the hyperparameters of trial-004 have the best expected val/mean_acc, 60.0" in sure
    assert "the trial was measured as the best. With few trials" in sure


def test_the_sentence_names_the_best_trial_within_the_constraints():
    records = trials(noise=0.5)
    best = ranked(SEARCH, records)[0]
    # The best by the objective alone misses the constraint.
    ahead = fakes.trial(len(records), 50.0, 80.0, params=best.params)
    constraint = parse_constraint("id_val/acc >= 51", ["id_val/acc"])
    search = replace(SEARCH, constraints=(constraint,))
    text = belief_sentence(search, [*records, ahead])
    assert text is not None
    assert "through the finished trials that meet the constraints" in text
    assert ahead.trial_id not in text
    assert best.trial_id in text


def test_few_noisy_trials_leave_doubt():
    rng, stated = np.random.default_rng(5), []
    for _ in range(30):
        points, centre = rng.uniform(size=(12, 2)), rng.uniform(0.2, 0.8, size=2)
        measured = 60 - 4 * ((points - centre) ** 2).sum(axis=1) + 0.3 * rng.standard_normal(12)
        records = [
            fakes.trial(number, value, value, params={"optim.lr": lr, "method.reg_weight": weight})
            for number, (value, (lr, weight)) in enumerate(zip(measured, points, strict=True))
        ]
        stated.append(beliefs(SEARCH, records)[0].chance)
    # By the likeliest kernel alone, the probabilities are higher.
    assert np.mean(stated) < 0.5
