"""Early stopping by Optuna's pruners, through the driver and over resumes."""

import math
import random
from functools import partial

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.run_folders import search_file
from tests.tuning.sessions import Session
from trainers.errors import ConfigError
from tuning.algorithms.samplers import LEAST_FINISHED, create_pruner
from tuning.config.objectives import Objective
from tuning.config.schema import SchedulerConfig
from tuning.log.history import History
from tuning.search import SearchOptions, continue_search

SPACE = SearchSpace(parameters={"optim.lr": Float(low=0.0, high=1.0)})
TOTAL, EVERY = 240, 20
CONFIGS = {
    "asha": SchedulerConfig(name="asha", grace_steps=20, reduction_factor=2),
    "hyperband": HyperbandPruner(min_resource=20, max_resource=TOTAL, reduction_factor=2),
    "object": PercentilePruner(25.0, n_startup_trials=2),
}
OWN = CONFIGS | {"asha": SuccessiveHalvingPruner(min_resource=20, reduction_factor=2)}


@pytest.mark.parametrize(
    ("steps", "every", "first"),
    [(5000, 1000, 3000), (25_030, 2503, 15_018), (240, 40, 160), (40, 40, 40), (20, 40, 20)],
)
def test_the_first_rung_is_an_evaluation_after_two_thirds_at_most(steps, every, first):
    assert SchedulerConfig(name="asha").first_step(steps, every) == first
    assert SchedulerConfig(name="asha", grace_steps=7).first_step(steps, every) == 7


class Pruned(Session):
    """A session with a pruner, each of whose trials reports every `EVERY` steps."""

    def __init__(self, folder, config, references=(), **changes):
        search = fakes.Search(folder, history=History(run_id="id"), **changes)
        pruner = partial(create_pruner, config, TOTAL, EVERY)
        super().__init__(search, SPACE, name="random", references=references, pruner=pruner)

    def step(self, trial_id, value, metric="val/mean_acc"):
        """The next report of a trial; whether it goes on."""
        step = self.recorder.records[trial_id].step + EVERY
        return self.report(trial_id, step, value, **{metric: value})


def value_of(trial_id, step):
    return random.Random(f"{trial_id} {step // 60}").gauss(50, 3) + step / 20


def history(folder, config, kill_after=()):
    """Steps of thirty trials, four at once, with the driver killed after so many reports."""
    folder.mkdir()
    session, running, reports = Pruned(folder, config), [], 0
    rng = random.Random(7)
    while True:
        while len(running) < 4 and len(session.recorder.records) < 30:
            running.append(session.start().trial_id)
        if not running:
            break
        trial_id = rng.choice(running)
        step = session.recorder.records[trial_id].step + EVERY
        if not session.step(trial_id, value_of(trial_id, step)):
            running.remove(trial_id)
        reports += 1
        if reports in kill_after:
            session.kill()
            session = Pruned(folder, config)
            # Trials that were running are proposed again, in the order of their numbers.
            again = [session.start().trial_id for _ in running]
            assert sorted(again) == sorted(running)
    session.kill()
    rungs = [
        {key: value for key, value in trial.system_attrs.items() if "rung" in key}
        for trial in session.study.trials
    ]
    return {r.trial_id: (r.step, r.outcome) for r in session.recorder.records.values()}, rungs


@pytest.mark.parametrize("name", CONFIGS)
def test_decisions_are_those_of_optuna_and_the_same_over_resumes(name, tmp_path):
    found, rungs = history(tmp_path / "whole", CONFIGS[name])
    assert (found, rungs) == history(tmp_path / "killed", CONFIGS[name], kill_after=(3, 40, 90, 91))
    assert 0 < sum(outcome == "pruned" for _, outcome in found.values()) < 30
    # Optuna itself, told of the same reports in the same order.
    study = optuna.create_study(study_name="id-None", direction="maximize", pruner=OWN[name])
    trials, finished, rng = [], 0, random.Random(7)
    running, steps = [], {}
    while len(trials) < 30 or running:
        while len(running) < 4 and len(trials) < 30:
            running.append(len(trials))
            trials.append(study.ask())
        number = rng.choice(running)
        steps[number] = steps.get(number, 0) + EVERY
        trials[number].report(value_of(f"trial-{number:03d}", steps[number]), steps[number])
        stops = trials[number].should_prune() and finished >= LEAST_FINISHED
        if steps[number] == TOTAL:
            study.tell(trials[number], value_of(f"trial-{number:03d}", TOTAL))
            finished += 1
        elif stops:
            study.tell(trials[number], state=TrialState.PRUNED)
        if steps[number] == TOTAL or stops:
            running.remove(number)
    assert {f"trial-{n:03d}": step for n, step in steps.items()} == {
        trial_id: step for trial_id, (step, _) in found.items()
    }


def test_trials_are_compared_by_what_the_sampler_optimises(tmp_path):
    session = Pruned(tmp_path, CONFIGS["asha"], nll=Objective("val/mean_nll", "min"))
    for nll in (*range(1, 7), 0.5, 9.0):
        trial_id = session.start().trial_id
        while session.step(trial_id, float(nll), "val/mean_nll"):
            pass
    *_, better, worse = session.recorder.records.values()
    assert (better.outcome, worse.outcome) == ("finished", "pruned")


def test_a_value_that_is_no_number_is_stopped_at_a_rung(tmp_path):
    session = Pruned(tmp_path, CONFIGS["asha"])
    for _ in range(LEAST_FINISHED):
        session.run(50.0)
    trial_id = session.start().trial_id
    assert not session.step(trial_id, math.nan)
    assert session.study.trials[-1].state == TrialState.FAIL


def test_references_and_the_last_report_are_never_stopped(tmp_path):
    session = Pruned(tmp_path, CONFIGS["asha"], references=["ft"])
    reference = session.start().trial_id
    while session.step(reference, -1.0):
        pass
    assert session.recorder.records[reference].outcome == "finished"
    for _ in range(LEAST_FINISHED):
        session.run(50.0)
    assert session.run(-1.0).outcome == "finished"


def test_with_several_objectives_no_trial_is_stopped(images_root, tmp_path):
    objectives = (Objective("id_val/acc"), Objective("ood_val/mean_acc"))
    both = [{"metric": objective.metric} for objective in objectives]
    file = search_file(images_root, search__objective=both)
    with pytest.raises(ConfigError, match="several objectives"):
        continue_search(tmp_path, file, SearchOptions(pruner=MedianPruner()))
    session = Pruned(tmp_path, CONFIGS["asha"], objectives=objectives)
    assert session.step(session.start().trial_id, 1.0)
