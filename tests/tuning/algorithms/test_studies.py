"""What studies learn of trials: one study a search, or one for each method."""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from tuning.algorithms.studies import TRIAL_ID
from tuning.config.objectives import Objective, parse_constraint
from tuning.log.records import METHOD_KEY

LR = Float(low=1e-6, high=1e-2, log=True)
WEIGHT = Float(low=0.01, high=100, log=True)
FIRST = {"optim.lr": 1e-5}
ONE = SearchSpace(parameters={"optim.lr": LR}, initial_points=[FIRST])
METRICS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc")


def space(*methods):
    """Plain fine-tuning has a learning rate only; the others are equal but for their names."""
    own = {"optim.lr": LR, "method.reg_weight": WEIGHT}
    weighted = SearchSpace(parameters=own, initial_points=[{**FIRST, "method.reg_weight": 1.0}])
    return {m: ONE if m == "ft" else weighted for m in methods}


THREE = space("ft", "kd", "l2_sp")


@pytest.fixture
def search(tmp_path):
    config = {"trial.method.name": "lipsum_ft"}
    return fakes.Search(tmp_path, config=config)


def run(session, number, value=50.0):
    return [record for _ in range(number) if (record := session.run(value)) is not None]


def methods(records):
    return [record.params.get(METHOD_KEY) for record in records]


def states(session):
    return {
        part.method: {t.user_attrs[TRIAL_ID]: t.state.name for t in part.study.trials}
        for part in session.studies.studies
    }


@pytest.mark.parametrize(
    ("reports", "error", "state", "value"),
    [
        ({120: 50.0, 240: 55.0}, False, TrialState.COMPLETE, 55.0),
        ({30: 49.0, 60: 51.0}, False, TrialState.PRUNED, 51.0),
        ({240: math.nan}, False, TrialState.FAIL, None),
        ({}, True, TrialState.FAIL, None),
    ],
)
def test_the_end_of_a_trial_is_a_state_of_optuna(reports, error, state, value, search):
    session = Session(search, ONE)
    session.start()
    for step, objective in reports.items():
        session.report("trial-000", step, objective, goes_on=step < max(reports))
    record = session.end("trial-000", error)
    (trial,) = session.study.trials
    assert (trial.state, trial.value) == (state, value)
    if state != TrialState.FAIL:
        assert trial.intermediate_values == reports
    assert error == (record.outcome == "failed")


def test_several_objectives_have_a_value_each(search):
    search = replace(search, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    for _ in range(2):
        with Session(search, ONE) as session:
            for step in () if session.recorder.records else (240, 60):
                session.run(0.0, step, **{"id_val/acc": 84.0, "ood_val/mean_acc": 61.0})
        whole, stopped = session.study.trials
        assert (whole.state, whole.values) == (TrialState.COMPLETE, [84.0, 61.0])
        assert (stopped.state, stopped.values) == (TrialState.PRUNED, None)


@pytest.mark.parametrize(
    ("nll", "best", "said"),
    [
        (Objective("val/mean_nll", "min"), 1e-5, "gp, optimises val/mean_nll"),
        (None, 1e-3, "gp, optimises val/mean_acc"),
    ],
)
def test_the_sampler_optimises_the_nll_where_there_is_one(nll, best, said, search):
    """The NLL has its best at the learning rate 1e-5, the accuracy at 1e-3."""
    points = [{"optim.lr": 10**exponent} for exponent in (-6.0, -5.5, -4.5, -3.5, -2.5, -2.0)]
    search = replace(search, nll=nll)
    lrs = ONE.model_copy(update={"initial_points": points})
    with Session(search, lrs, name="gp") as session:
        assert session.studies.describe() == said
        distances = []
        for _ in range(14):
            trial = session.start()
            unit = math.log10(trial.params["optim.lr"])
            accuracy, nll = 60 - (unit + 3) ** 2, 1 + 0.1 * (unit + 5) ** 2
            session.report(trial.trial_id, fakes.TOTAL_STEPS, accuracy, **{"val/mean_nll": nll})
            session.end(trial.trial_id)
            distances.append(abs(unit - math.log10(best)))
    assert statistics.median(distances[len(points) :]) < 0.4


@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_at_each_proposal_violations_are_those_by_the_best_of_now(name, search):
    lines = ("id_val/acc >= zero_shot.id_val/acc", "id_val/acc >= best - 0.5")
    search = replace(search, constraints=tuple(parse_constraint(c, METRICS) for c in lines))
    found = []
    for accuracies in ((83.0, 85.0), (80.0,), (math.nan,)):  # the zero-shot model has 82.4
        with Session(search, ONE, name=name) as session:
            for accuracy in accuracies:
                session.run(60.0, **{"id_val/acc": accuracy})
            session.start()
            found = [list(t.constraints.values()) for t in session.study.trials if t.constraints]
            session.end(session.study.trials[-1].user_attrs[TRIAL_ID], error=True)
    expected = [[-0.6, 1.5], [-2.6, -0.5], [2.4, 4.5], [1e9, 1e9]]
    assert found == [pytest.approx(row) for row in expected]


def test_the_best_of_a_constraint_is_the_best_of_the_method(search):
    line = "id_val/acc >= best - 0.5"
    search = replace(search, constraints=(parse_constraint(line, METRICS),))
    for _ in range(2):
        with Session(search, space("ft", "kd")) as session:
            for accuracy in () if session.recorder.records else (90.0, 70.0, 89.0, 71.0):
                session.run(60.0, **{"id_val/acc": accuracy})
            for _ in range(2):
                session.propose()
        assert {
            part.method: [t.constraints[line] for t in part.study.trials if t.constraints]
            for part in session.studies.studies
        } == {"ft": [-0.5, 0.5], "kd": [0.5, -0.5]}


def test_a_failed_point_is_not_proposed_again(search):
    one = SearchSpace(parameters={"optim.lr": LR, "method.reg_weight": WEIGHT})
    points, failures = [], 0
    for _ in range(2):  # the second session is a resume, which reads the failures in the journal
        with Session(search, one, name="gp") as session:
            for _ in range(10):
                record = session.start()
                lr, weight = (float(record.params[key]) for key in one.parameters)
                points.append((math.log10(lr), math.log10(weight)))
                if diverges := lr > 2e-4:
                    failures += 1
                else:  # the best learning rate is the highest that does not diverge
                    session.report(record.trial_id, fakes.TOTAL_STEPS, 50.0 + math.log10(lr))
                session.end(record.trial_id, error=diverges)
    assert set(states(session)[None].values()) == {"COMPLETE", "FAIL"}
    assert failures < 10
    assert min(math.dist(a, b) for a, b in itertools.combinations(points, 2)) > 1e-3


def test_methods_take_turns_and_begin_at_their_initial_points(search):
    records = run(Session(search, THREE), 7)
    assert methods(records) == ["ft", "kd", "l2_sp", "ft", "kd", "l2_sp", "ft"]
    assert records[0].params == {METHOD_KEY: "ft", **FIRST}
    assert records[1].params == {METHOD_KEY: "kd", "optim.lr": 1e-5, "method.reg_weight": 1.0}
    assert "method.reg_weight" not in records[3].params
    assert [record.is_first_point for record in records] == [True] * 3 + [False] * 4


def test_after_a_kill_each_study_has_the_trials_of_its_method(search):
    with Session(search, THREE) as session:
        session.run(73.5)
        session.start()
        session.end("trial-001", error=True)
        session.run(60.0, step=80)
        for _ in range(3):
            session.start()
        session.propose()  # and never started
    with Session(search, THREE, trials=11) as session:
        assert states(session) == {
            "ft": {"trial-000": "COMPLETE", "trial-003": "RUNNING"},
            "kd": {"trial-001": "FAIL", "trial-004": "RUNNING"},
            "l2_sp": {"trial-002": "PRUNED", "trial-005": "RUNNING"},
        }
        for part in session.studies.studies:
            keys = part.space.parameters.keys()
            assert all(t.params.keys() == keys for t in part.study.trials)
        again = run(session, 3)
        assert [record.trial_id for record in again] == ["trial-003", "trial-004", "trial-005"]
        new = run(session, 9)
        # Whatever became of the trials, no method has two more than another.
        assert Counter(methods(again + new)) == {"ft": 3, "kd": 3, "l2_sp": 2}
        assert states(session)["kd"]["trial-004"] == "COMPLETE"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_method_is_tuned_as_if_it_were_searched_alone(search, sampler, tmp_path):
    """kd is worse overall, and best at another learning rate."""

    def quality(method, lr):
        start, best = (60.0, 1e-3) if method == "ft" else (50.0, 1e-5)
        return start - abs(math.log10(lr / best))

    def proposed(session, number):
        found = {}
        for _ in range(number):
            record = session.start()
            method, lr = record.params.get(METHOD_KEY, "kd"), record.params["optim.lr"]
            found.setdefault(method, []).append(lr)
            session.report(record.trial_id, fakes.TOTAL_STEPS, quality(method, lr))
            session.end(record.trial_id)
        return found

    both = proposed(Session(search, {"ft": ONE, "kd": ONE}, name=sampler), 60)
    (tmp_path / "alone").mkdir()
    alone = fakes.Search(tmp_path / "alone")
    assert proposed(Session(alone, ONE, name=sampler), 30)["kd"] == both["kd"]
    if sampler == "tpe":
        for method, best in (("ft", 1e-3), ("kd", 1e-5)):
            distances = [abs(math.log10(lr / best)) for lr in both[method][15:]]
            assert statistics.median(distances) < 0.7  # at random it is 1


def test_a_sampler_of_the_user_proposes_in_every_study(search):
    class Constant(optuna.samplers.RandomSampler):
        def sample_independent(self, *_):
            return 3e-4

    plain = SearchSpace(parameters={"optim.lr": LR})
    session = Session(search, {"ft": plain, "kd": plain}, sampler=Constant())
    assert [record.params["optim.lr"] for record in run(session, 2)] == [3e-4, 3e-4]
    assert session.studies.describe().startswith("Constant, optimises")
