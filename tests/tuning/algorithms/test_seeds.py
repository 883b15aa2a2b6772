"""Seeds that are raced at the end of a search."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from tuning.algorithms.seeds import LEADERS, chance_of_first
from tuning.checkpoints.retention import kept_trials
from tuning.config.objectives import parse_constraint
from tuning.driver import End, Wait
from tuning.runs.history import read_history
from tuning.runs.ranking import deviation_of_repeats, margin_of_mean

LR = "optim.lr"
SPACE = SearchSpace(parameters={LR: Float(low=1e-5, high=1e-2, log=True)})
LUCK = {0: 0.0, 1: -0.6, 2: 0.3, 3: 0.0, 4: 0.2}
"""By seed; that of the first training is 0."""


@pytest.fixture
def search(tmp_path):
    return fakes.search_record(tmp_path)


def with_seeds(number, *values):
    """A finished trial with these values of the objective over its seeds."""
    reports = [{"step": fakes.TOTAL_STEPS, "val/mean_acc": value} for value in values]
    repetitions = dict(enumerate(reports[1:], 1))
    return fakes.trial(number, curve=(reports[0],), repetitions=repetitions)


def value_of(record):
    """Best at a rate of 1e-3; the first trial is lucky with its first seed."""
    seed = record.params.get("seed", 0)
    is_lucky = record.number == 0 and seed == 0
    return 60 - abs(math.log10(record.params[LR]) + 3) + LUCK[seed] + is_lucky


def train(session, number, value_of=value_of):
    """So many trainings; those with seed 3 fail. Their names."""
    names = []
    while len(names) < number and (record := session.start()) is not None:
        names.append(record.trial_id)
        failed = record.repeats and "-seed-3" in record.trial_id
        if not failed:
            session.report(record.trial_id, fakes.TOTAL_STEPS, value_of(record))
        session.end(record.trial_id, error=bool(failed))
    return names


def test_the_last_third_of_the_budget_repeats_the_leaders(search):
    session = Session(search, SPACE, trials=15, seeds={"confident": 0.999}, name="random")
    names = train(session, 100)
    assert len(names) == 15
    assert names[:10] == [f"trial-{number:03d}" for number in range(10)]
    records = {record.trial_id: record for record in read_history(search.run_folder).records}
    repeats = [records[name] for name in names[10:]]
    assert {record.kind for record in repeats} == {"repeat"}
    for record in repeats:
        trial = records[record.repeats]
        seed = record.params["seed"]
        assert record.trial_id == f"{trial.trial_id}-seed-{seed}"
        assert record.params == {**trial.params, "seed": seed}
        if record.outcome == "finished":
            assert trial.repetitions[seed] == record.metrics
        else:
            assert seed not in trial.repetitions
    kept = kept_trials(search, records.values(), LEADERS)
    assert {record.kind for record in kept.values()} == {"trial"}
    first = records["trial-000"]
    seeds = [first, *(r for r in repeats if r.repeats == "trial-000" and r.outcome == "finished")]
    assert first.last("val/mean_acc") == pytest.approx(
        sum(value_of(record) for record in seeds) / len(seeds)
    )
    assert session.study.trials[0].value == first.last("val/mean_acc")
    live = session.recorder.records["trial-000"]
    assert live.repetitions == first.repetitions


def test_a_killed_race_goes_on_as_if_nothing_had_happened(search, tmp_path):
    (tmp_path / "whole").mkdir()
    options = {"trials": 15, "seeds": {"confident": 0.999, "max": 3}, "name": "random"}
    whole = train(Session(fakes.search_record(tmp_path / "whole"), SPACE, **options), 100)
    names = []
    for number in (11, 1, 2):
        with Session(search, SPACE, **options) as session:
            names += train(session, number)
            killed = session.start()
    with Session(search, SPACE, **options) as session:
        assert killed.trial_id == whole[14]
        names += train(session, 100)
    assert list(dict.fromkeys(names)) == whole


def test_a_search_ends_once_its_leader_is_the_best(search):
    session = Session(search, SPACE, trials=30, seeds={}, name="random")

    def value(record):
        return (60 if record.number == 7 else 50) + LUCK[record.params.get("seed", 0)]

    names = train(session, 100, value)
    assert names[20:] == ["trial-007-seed-1"]
    assert "trial-007 is the best trial with a probability of 0.9" in session.race.ended_by
    assert isinstance(session.driver.next(), End)


def test_the_next_seed_goes_where_it_may_change_who_wins(search):
    session = Session(search, SPACE, trials=3, seeds={"max": 3})
    close, leader, far = with_seeds(0, 60.0), with_seeds(1, 60.0, 60.4), with_seeds(2, 40.0)
    done = replace(leader, kind="repeat", repeats=leader.trial_id, params={"seed": 1})
    records = [close, leader, far, done]
    # One more seed moves the mean of a trial with one seed more than that of one with two.
    records.append(session.race.next(records))
    records.append(session.race.next(records))
    repeats = [(record.repeats, record.params["seed"]) for record in records[4:]]
    assert repeats == [(close.trial_id, 1), (leader.trial_id, 2)]
    while (record := session.race.next(records)) is not None:
        records.append(record)
    assert len(records) == 3 * 3  # the first trainings are those of the trials
    assert session.race.ended_by == "search.seeds.max = 3: all trials have so many"


@pytest.mark.parametrize("case", [21, 30, 36, 42, 59])  # in which other formulas go elsewhere
def test_the_next_seed_has_the_greatest_expected_gain(case, search):
    """Which is integrated here, with the deviation of all seeds together."""
    rng = np.random.default_rng(case)
    session = Session(search, SPACE, trials=9, seeds={"max": 9, "confident": 0.9999})
    seeds = [60 + 0.1 * n + rng.normal(0, 0.5, 1 + rng.integers(5)) for n in range(4)]
    trials = [with_seeds(number, *of) for number, of in enumerate(seeds)]
    repeats = [
        fakes.trial(n, kind="repeat", repeats=trials[n].trial_id, params={"seed": s})
        for n, of in enumerate(seeds)
        for s in range(1, len(of))
    ]
    squares = sum(np.var(of) * len(of) for of in seeds)
    deviation = math.sqrt(squares / sum(len(of) - 1 for of in seeds))
    means = [np.mean(of) for of in seeds]

    def gain(number):
        n, rival = len(seeds[number]), max(means[:number] + means[number + 1 :])
        moved = deviation * math.sqrt(1 / n - 1 / (n + 1))
        value = means[number] + moved * np.linspace(-9, 9, 100_001)
        weight = stats.norm.pdf(value, means[number], moved)
        return np.average(np.maximum(value, rival), weights=weight) - max(means)

    chosen = trials[max(range(4), key=gain)]
    assert session.race.next([*trials, *repeats]).repeats == chosen.trial_id


def test_only_trials_that_meet_the_constraints_are_raced(search):
    line = parse_constraint("id_val/acc >= 80", ("id_val/acc",))
    session = Session(replace(search, constraints=(line,)), SPACE, trials=3, seeds={})
    allowed = [fakes.trial(number, 85.0, 60.0) for number in (0, 1)]
    better = fakes.trial(2, 79.0, 90.0)
    assert session.race.begins(2, [*allowed, better])
    assert session.race.next([*allowed, better]).repeats == "trial-000"
    assert not session.race.begins(2, [allowed[0], better])
    assert not session.race.begins(1, [*allowed, better])
    assert not session.race.begins(3, [*allowed, better])


def test_the_race_waits_for_trials_that_still_train(search):
    line = parse_constraint("id_val/acc >= 80", ("id_val/acc",))
    search = replace(search, constraints=(line,))
    session = Session(search, SPACE, trials=9, seeds={"max": 2}, name="random")
    session.race._base_seed = 2**40
    names = [session.start().trial_id for _ in range(6)]

    def finish(name, acc):
        session.report(name, fakes.TOTAL_STEPS, 60.0, **{"id_val/acc": acc})
        session.end(name)

    for name, acc in zip(names[:5], (85.0, 85.0, 70.0, 70.0, 70.0), strict=True):
        finish(name, acc)
    repeats = [session.start().trial_id for _ in range(2)]
    assert repeats == [f"{name}-seed-{2**40 + 1}" for name in names[:2]]
    assert isinstance(session.driver.next(), Wait)  # the sixth may be the best
    finish(names[5], 90.0)
    assert session.start().repeats == names[5]
    assert session.race.ended_by is None
    assert session.propose() is None
    assert isinstance(session.driver.next(), End)


def test_the_chance_is_that_of_students_t(search):
    trials = [with_seeds(0, 60.0, 60.6, 60.9), with_seeds(1, 59.5, 60.1)]
    deviation, freedom = deviation_of_repeats(trials, search.objectives[0].metric)
    assert freedom == 3
    assert deviation**2 == pytest.approx((0.42 + 0.18) / 3)
    ratio = (60.5 - 59.8) / (deviation * math.sqrt(1 / 3 + 1 / 2))
    assert chance_of_first(search, trials) == pytest.approx(stats.t.cdf(ratio, 3), abs=0.01)
    assert chance_of_first(search, [with_seeds(0, 60.0), with_seeds(1, 10.0)]) == 0
    interval = stats.t.interval(0.95, 3, 60.5, deviation / math.sqrt(3))
    assert margin_of_mean(search, trials, trials[0]) == pytest.approx(interval[1] - 60.5)
    assert margin_of_mean(search, trials, with_seeds(2, 50.0)) is None
