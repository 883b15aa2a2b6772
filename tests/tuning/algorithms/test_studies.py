"""Several methods in one search: trials in turn, and a study for each that holds its own alone."""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace

import optuna
import pytest
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.storages import InMemoryStorage

from search_spaces import Categorical, Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from tuning.algorithms.optuna_storage import open_storage
from tuning.algorithms.samplers import create_sampler
from tuning.algorithms.studies import TRIAL_ID, create_studies
from tuning.config.objectives import parse_constraint
from tuning.config.schema import SamplerConfig
from tuning.runs.records import METHOD_KEY

LR = Float(low=1e-6, high=1e-2, log=True)
WEIGHT = Float(low=0.01, high=100, log=True)
FIRST = {"optim.lr": 1e-5}


def space(*methods):
    """Plain fine-tuning has a learning rate only; the others are equal but for their names."""
    own = {"optim.lr": LR, "method.reg_weight": WEIGHT}
    weighted = SearchSpace(
        parameters=own, initial_points=[{"optim.lr": 1e-5, "method.reg_weight": 1.0}]
    )
    plain = SearchSpace(parameters={"optim.lr": LR}, initial_points=[FIRST])
    return SearchSpace(branches={m: plain if m == "ft" else weighted for m in methods})


THREE = space("ft", "kd", "l2_sp")


@pytest.fixture
def search(tmp_path):
    config = {"trial": {"method": {"name": "lipsum_ft"}}}
    return fakes.search_record(tmp_path, config=config)


def run(session, number, value=50.0):
    """So many finished trials."""
    return [record for _ in range(number) if (record := session.run(value)) is not None]


def methods(records):
    return [record.params.get(METHOD_KEY) for record in records]


def states(session):
    return {
        part.method: {
            t.user_attrs[TRIAL_ID]: t.state.name
            for t in part.study.trials
            if TRIAL_ID in t.user_attrs
        }
        for part in session.studies.studies
    }


def test_methods_take_turns_and_begin_at_their_initial_points(search):
    records = run(Session(search, THREE), 7)
    assert methods(records) == ["ft", "kd", "l2_sp", "ft", "kd", "l2_sp", "ft"]
    assert records[0].params == {METHOD_KEY: "ft", **FIRST}
    assert records[1].params == {METHOD_KEY: "kd", "optim.lr": 1e-5, "method.reg_weight": 1.0}
    assert "method.reg_weight" not in records[3].params


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
            assert all(t.params.keys() == keys for t in part.study.trials if t.params)
        again = run(session, 3)
        assert [record.trial_id for record in again] == ["trial-003", "trial-004", "trial-005"]
        new = run(session, 9)
        # Whatever became of the trials, no method has two more than another.
        assert Counter(methods(again + new)) == {"ft": 3, "kd": 3, "l2_sp": 2}
        assert states(session)["kd"]["trial-004"] == "COMPLETE"


def test_an_added_method_catches_up_first(search):
    with Session(search, THREE) as session:
        run(session, 6)
    with Session(search, space("ft", "kd", "l2_sp", "car_ft")) as session:
        records = run(session, 4)
    assert methods(records) == ["car_ft", "car_ft", "ft", "kd"]
    assert records[0].params["method.reg_weight"] == 1.0  # its initial point
    with Session(search, space("ft", "l2_sp")) as session:
        assert methods(run(session, 2)) == ["l2_sp", "ft"]


def test_a_search_of_one_method_extends_to_several_and_back(search):
    alone = space("kd").branches["kd"]
    search = replace(search, config={"trial": {"method": {"name": "kd"}}})
    with Session(search, alone) as session:
        run(session, 1)
        unfinished = session.start()
    with Session(search, THREE) as session:
        assert [len(states(session)[m]) for m in ("ft", "kd", "l2_sp")] == [0, 2, 0]
        records = run(session, 5)
    assert (records[0].trial_id, records[0].params) == ("trial-001", unfinished.params)
    assert methods(records[1:]) == ["ft", "l2_sp", "ft", "l2_sp"]
    with Session(search, alone) as session:
        assert states(session) == {None: {"trial-000": "COMPLETE", "trial-001": "COMPLETE"}}


@pytest.mark.parametrize("kept_in", ["file", "database"])
def test_studies_of_a_storage_are_made_anew_and_not_added(kept_in, search, tmp_path):
    url = None if kept_in == "file" else f"sqlite:///{tmp_path / 'optuna.db'}"
    for methods_ in (("kd", "l2_sp"), ("kd",), ("kd", "l2_sp")):
        with Session(search, space(*methods_), storage=url) as session:
            run(session, 2)
    names = optuna.get_all_study_names(open_storage(search.run_folder, url))
    assert sorted(names) == sorted(part.study.study_name for part in session.studies.studies)
    assert sum(len(found) for found in states(session).values()) == 6


def test_a_trial_with_a_choice_that_is_gone_stays_outside(search):
    def space(*choices):
        return SearchSpace(parameters={"precision": Categorical(choices=choices)})

    with Session(search, space("fp32", "bf16"), name="grid") as session:
        records = run(session, 2)
    kept = [r.trial_id for r in records if r.params["precision"] == "bf16"]
    with Session(search, space("bf16", "fp16"), name="grid") as session:
        assert list(states(session)[None]) == kept
        assert session.start().params == {"precision": "fp16"}


def quality(params):
    """One point is lost for each order of magnitude of the learning rate; kd is worse overall."""
    best = 1e-3 if params[METHOD_KEY] == "ft" else 1e-5
    start = 60.0 if params[METHOD_KEY] == "ft" else 50.0
    return start - abs(math.log10(params["optim.lr"] / best))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_method_is_tuned_as_if_it_were_searched_alone(search, sampler):
    lrs = SearchSpace(parameters={"optim.lr": LR}, initial_points=[FIRST])
    both = SearchSpace(branches={"ft": lrs, "kd": lrs})
    session = Session(search, both, name=sampler, storage=InMemoryStorage())
    proposed = {"ft": [], "kd": []}
    for _ in range(60):
        record = session.start()
        proposed[record.params[METHOD_KEY]].append(float(record.params["optim.lr"]))
        session.report(record.trial_id, fakes.TOTAL_STEPS, quality(record.params))
        session.end(record.trial_id)
    for method, lrs_of_it in proposed.items():  # by Optuna itself, in a study of nothing else
        alone = optuna.create_study(
            direction="maximize",
            sampler=create_sampler(
                SamplerConfig.model_validate({"name": sampler, "startup_trials": 6})
            ),
        )
        alone.enqueue_trial(FIRST)
        for lr in lrs_of_it:
            trial = alone.ask({"optim.lr": LR.to_optuna()})
            assert trial.params["optim.lr"] == lr
            value = quality({METHOD_KEY: method, **trial.params})
            trial.report(value, fakes.TOTAL_STEPS)
            alone.tell(trial, value)
    if sampler == "tpe":
        for method, best in (("ft", 1e-3), ("kd", 1e-5)):
            distances = [abs(math.log10(lr / best)) for lr in proposed[method][15:]]
            assert statistics.median(distances) < 0.7  # at random it is 1


def test_the_best_of_a_constraint_is_the_best_of_the_method(search):
    line = "id_val/acc >= best - 0.5"
    search = replace(search, constraints=(parse_constraint(line, ("id_val/acc",)),))

    def violations(session):
        return {
            part.method: [t.constraints[line] for t in part.study.trials if t.constraints]
            for part in session.studies.studies
        }

    with Session(search, space("ft", "kd")) as session:
        for accuracy in (90.0, 70.0, 89.0, 71.0):
            session.run(60.0, **{"id_val/acc": accuracy})
        assert violations(session) == {"ft": [-0.5, 0.5], "kd": [-0.5, -0.5]}
    with Session(search, space("ft", "kd")) as session:  # now the last bests are known
        assert violations(session) == {"ft": [-0.5, 0.5], "kd": [0.5, -0.5]}


@pytest.mark.parametrize(
    ("metric", "best", "said"),
    [
        (
            "auto",
            1e-3,
            "gp, optimises val/mean_nll (gp models the difference from the objective too); trials",
        ),
        ("val/mean_nll", 1e-5, "gp, optimises val/mean_nll; trials"),
        ("objective", 1e-3, "gp, optimises val/mean_acc"),
    ],
)
def test_the_default_is_the_nll_corrected_by_the_objective(metric, best, said, search):
    """The NLL has its best at the learning rate 1e-5, the accuracy at 1e-3."""
    points = [{"optim.lr": 10**exponent} for exponent in (-6.0, -5.5, -4.5, -3.5, -2.5, -2.0)]
    lrs = SearchSpace(parameters={"optim.lr": LR}, initial_points=points)
    search = replace(search, sampler_metric=metric)
    with Session(search, lrs, metric=metric, name="gp") as session:
        assert session.studies.describe().startswith(said)
        distances = []
        for _ in range(16):
            trial = session.start()
            unit = math.log10(trial.params["optim.lr"])
            accuracy, nll = 60 - (unit + 3) ** 2, 1 + 0.1 * (unit + 5) ** 2
            session.report(trial.trial_id, fakes.TOTAL_STEPS, accuracy, **{"val/mean_nll": nll})
            session.end(trial.trial_id)
            distances.append(abs(unit - math.log10(best)))
    assert statistics.median(distances[len(points) :]) < 0.4


def test_violations_follow_a_best_that_moves(search):
    line = "id_val/acc >= best - 0.5"
    search = replace(search, constraints=(parse_constraint(line, ("id_val/acc",)),))
    with Session(search, SearchSpace(parameters={"optim.lr": LR}), name="gp") as session:
        for accuracy in (55.0, 64.0, 72.0):
            session.run(60.0, **{"id_val/acc": accuracy})
        (own,) = session.studies.studies
        assert [t.constraints[line] for t in own.study.trials] == [-0.5] * 3
        now = [own.violations(t)[line] for t in own.study.trials]
        assert now == pytest.approx([16.5, 7.5, -0.5])
        assert own.study.sampler._violations == own.violations


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


def test_each_method_has_a_grid_that_goes_on_after_a_kill(search):
    records = []
    for trials in (3, 100):
        with Session(search, space("ft", "kd"), trials=trials, name="grid", grid_points=2) as s:
            while (record := s.run(1.0)) is not None:
                records.append(record)
    assert methods(records) == ["ft", "kd", "ft", "kd", "kd", "kd"]  # two points, and two by two
    points = {tuple(record.params.items()) for record in records}
    ends = [(lr, weight) for lr in (1e-6, 1e-2) for weight in (0.01, 100.0)]
    found = sorted(
        (r.params["optim.lr"], r.params["method.reg_weight"])
        for r in records
        if r.params[METHOD_KEY] == "kd"
    )
    assert len(points) == 6
    assert [list(point) for point in found] == [pytest.approx(end) for end in ends]


def test_a_sampler_of_the_user_proposes_in_every_study(search):
    class Constant(optuna.samplers.RandomSampler):
        def sample_independent(self, *_):
            return 3e-4

    created = create_studies(search, space("ft", "kd"), Constant(), InMemoryStorage(), "id")
    proposed = [created.propose(n, f"trial-{n:03d}") for n in range(2)]
    assert [p.params["optim.lr"] for p in proposed if p is not None] == [3e-4, 3e-4]


def test_first_points_are_told_from_proposals(search):
    sampler = SamplerConfig(name="random")
    created = create_studies(search, space("ft", "kd"), sampler, InMemoryStorage(), "id")
    created.enqueue_initial_points()
    assert created.num_waiting == 2
    records = [created.propose(n, f"trial-{n:03d}") for n in range(4)]
    assert [r and r.is_first_point for r in records] == [True, True, False, False]
    assert created.num_waiting == 0


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "make", [lambda: GridSampler({"seed": [1, 2]}), BruteForceSampler], ids=["grid", "brute_force"]
)
def test_a_sampler_that_has_tried_all_points_ends_its_study(search, make):
    two = SearchSpace(parameters={"seed": Categorical(choices=(1, 2))})
    created = create_studies(search, two, make(), InMemoryStorage(), "id")
    tried = []
    while (record := created.propose(len(tried), f"trial-{len(tried):03d}")) is not None:
        tried.append(record.params["seed"])
        created.trial_ended(fakes.trial(record.number, params=record.params))
    assert sorted(tried) == [1, 2]
    # Optuna 5.0's own method raises. Once it does not, its replacement can go.
    with pytest.raises(RuntimeError, match=r"Study\.stop"):
        optuna.create_study().stop()


def test_each_method_has_its_part_of_a_grid_of_the_user_once(search):
    """Before the second session, a trial has failed and the others are running."""
    grid = {"optim.lr": [1e-5, 1e-4], "method.reg_weight": [1.0, 10.0]}
    records = []
    for proposals in (4, 9):
        created = create_studies(
            search, space("ft", "kd"), GridSampler(grid), InMemoryStorage(), "id", records
        )
        for _ in range(proposals):
            record = created.propose(len(records), f"trial-{len(records):03d}")
            records += [] if record is None else [record]
        if proposals == 4:
            records[0] = replace(records[0], outcome="failed")
            created.trial_ended(records[0])
    methods = [record.params[METHOD_KEY] for record in records]
    assert (methods.count("ft"), methods.count("kd")) == (2, 4)


def test_a_sampler_of_a_grid_gets_no_initial_points(search):
    given = SearchSpace(parameters={"optim.lr": LR}, initial_points=[FIRST])
    sampler = GridSampler({"optim.lr": [1e-3]})
    created = create_studies(search, given, sampler, InMemoryStorage(), "id")
    created.enqueue_initial_points()
    record = created.propose(0, "trial-000")
    assert record is not None
    assert record.params == {"optim.lr": 1e-3}
