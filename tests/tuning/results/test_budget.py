from dataclasses import replace

from tests.tuning import fakes
from tuning.config.schema import BudgetConfig
from tuning.log.history import History
from tuning.results.budget import Budget


class Clock:
    def __init__(self):
        self.now = 10_000.0

    def __call__(self):
        return self.now


def budget(clock, records=(), seconds=0.0, **limits):
    config = BudgetConfig.model_validate({"trials": 10, **limits})
    return Budget(config, History(tuple(records), {}, seconds), clock)


def scored(number, accuracy):
    return fakes.trial(number, accuracy, accuracy, started_at=0.0, ended_at=60.0, gpus=2.0)


def end(spent, record):
    spent.trial_started(replace(record, outcome="running", ended_at=None))
    spent.trial_ended(record)


def test_trials_are_counted_by_their_numbers():
    spent = budget(Clock(), trials=3)
    assert [spent.allows(number) for number in range(5)] == [True, True, True, False, False]
    assert spent.over() is None  # what runs may finish


def test_failures_in_a_row_break_a_session_and_not_the_next_one():
    failed = [fakes.trial(number, outcome="failed", gpus=0.0) for number in range(3)]
    spent = budget(Clock(), failures=2)
    for record in (failed[0], scored(9, 60.0), failed[1]):
        end(spent, record)
    assert not spent.is_broken
    end(spent, failed[2])
    assert spent.is_broken
    assert spent.over() == "2 trials failed in a row (search.budget.failures)"
    assert not budget(Clock(), tuple(failed), failures=2).is_broken


def test_a_trial_whose_driver_is_lost_counts_once():
    clock = Clock()
    spent = budget(clock, gpu_hours=1.0)
    started = fakes.trial(0, outcome="running", started_at=10_000.0, ended_at=None, gpus=2.0)
    spent.trial_started(started)
    spent.trial_started(started.with_attempt(10_030.0, 2.0))
    clock.now += 40
    assert spent.gpu_seconds == 2 * 40


def test_wall_clock_counts_earlier_sessions():
    clock = Clock()
    spent = budget(clock, seconds=1000.0, hours=1.0)
    clock.now += 2599
    assert spent.over() is None
    clock.now += 1
    assert "hours" in str(spent.over())
    assert not spent.allows(0)


def test_gpu_hours_count_partial_failed_and_repeated_trials_and_references():
    clock = Clock()
    earlier = (
        fakes.reference(started_at=0.0, ended_at=100.0, gpus=1.0),
        scored(0, 60.0),  # 60 s of 2 GPUs
        fakes.trial(1, outcome="failed", started_at=0.0, ended_at=7.0, gpus=2.0),
        fakes.trial(
            2, outcome="stopped", started_at=0.0, ended_at=20.0, gpus=2.0, earlier_gpu_seconds=5.0
        ),
    )
    spent = budget(clock, earlier, gpu_hours=1.0)
    before = 100 + 120 + 14
    assert spent.gpu_seconds == before + 45
    # Taken up again, on half as many GPUs: what was used before keeps its price.
    again = fakes.trial(
        2, outcome="running", started_at=10_000.0, ended_at=None, gpus=1.0, earlier_gpu_seconds=45.0
    )
    spent.trial_started(again)
    clock.now += 40
    assert spent.gpu_seconds == before + 45 + 40
    clock.now += 4000
    assert "gpu_hours" in str(spent.over())
    spent.trial_ended(replace(again, outcome="finished", ended_at=10_050.0))
    assert spent.gpu_seconds == before + 45 + 50


def test_an_end_that_is_told_again_after_a_resume_is_counted_once():
    earlier = tuple(scored(number, 60.0 + number) for number in range(3))
    spent = budget(Clock(), earlier, gpu_hours=1.0)
    for record in earlier:  # as the recorder tells its callbacks at the start
        spent.trial_ended(record)
    assert spent.gpu_seconds == 3 * 120
    assert spent.allows(3)
