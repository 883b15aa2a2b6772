import math
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from search_spaces import Float, Int, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from trainers.config import TrialConfig
from trainers.errors import ConfigError
from tuning.algorithms.studies import TRIAL_ID
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs.journal import read_history
from tuning.runs.ranking import best_trial

FIRST = {"optim.lr": 1e-4, "method.text_length": 8}
SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-5, high=1e-2, log=True),
        "method.text_length": Int(low=2, high=16),
    },
    initial_points=[FIRST],
)
METRICS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc")


@pytest.fixture
def search(tmp_path):
    return fakes.search_record(tmp_path)


def states(session):
    """State of each Optuna trial by the name of ours; waiting points have none."""
    trials = session.study.trials
    return {t.user_attrs[TRIAL_ID]: t.state.name for t in trials if TRIAL_ID in t.user_attrs}


def test_references_come_first_then_initial_points_then_the_sampler(search):
    session = Session(search, SPACE, trials=2, references=("ft",))
    reference = session.run(50.0)
    assert (reference.trial_id, reference.params) == ("ft", {})
    assert states(session) == {}  # it never reaches the study
    first, second = session.propose(), session.propose()
    assert (first["trial_id"], first["params"]) == ("trial-000", FIRST)
    assert second["trial_id"] == "trial-001"
    assert second["params"].keys() == FIRST.keys()
    assert not session.proposer.is_exhausted
    assert session.propose() is None
    assert session.proposer.is_exhausted


def test_a_proposal_that_does_not_validate_is_a_failed_trial(search):
    def config_of(record):
        if record.number == 0:
            raise ConfigError("too long", key="method.text_length")
        return TrialConfig()

    session = Session(search, SPACE, config_of=config_of)
    spec = session.propose()
    assert spec["trial_id"] == "trial-001"
    (failed,) = read_history(search.run_folder, live=True).records
    assert (failed.trial_id, failed.outcome) == ("trial-000", "failed")
    assert "method.text_length: too long" in str(failed.error)
    assert states(session) == {"trial-000": "FAIL", "trial-001": "RUNNING"}


@pytest.mark.parametrize(
    ("reports", "error", "state", "value"),
    [
        ({120: 50.0, 240: 55.0}, False, TrialState.COMPLETE, 55.0),
        ({30: 49.0, 60: 51.0}, False, TrialState.PRUNED, 51.0),
        ({240: math.nan}, False, TrialState.FAIL, None),
        ({240: math.inf}, False, TrialState.FAIL, None),
        ({}, True, TrialState.FAIL, None),
    ],
)
def test_the_end_of_a_trial_is_a_state_of_optuna(reports, error, state, value, search):
    session = Session(search, SPACE)
    session.start()
    for step, objective in reports.items():
        session.report("trial-000", step, objective, done=step == max(reports) < 240)
    record = session.end("trial-000", error)
    (trial,) = session.study.trials
    assert (trial.state, trial.value) == (state, value)
    if state != TrialState.FAIL:
        assert trial.intermediate_values == reports
    assert error == (record.outcome == "failed")


def test_constraints_are_passed_on_as_violations(search):
    lines = ("id_val/acc >= zero_shot.id_val/acc", "id_val/acc >= best - 0.5")
    search = replace(search, constraints=tuple(parse_constraint(c, METRICS) for c in lines))
    session = Session(search, SPACE)
    for id_acc in (83.0, 85.0, 80.0):  # the zero-shot model has 82.4
        session.run(60.0, **{"id_val/acc": id_acc})
    violations = [list(trial.constraints.values()) for trial in session.study.trials]
    expected = [[-0.6, -0.5], [-2.6, -0.5], [2.4, 4.5]]
    assert violations == [pytest.approx(row) for row in expected]


def test_several_objectives_and_pruning(search):
    search = replace(search, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    session = Session(search, SPACE)
    for step in (240, 60):
        session.run(0.0, step, **{"id_val/acc": 84.0, "ood_val/mean_acc": 61.0})
    whole, stopped = session.study.trials
    assert (whole.state, whole.values) == (TrialState.COMPLETE, [84.0, 61.0])
    assert (stopped.state, stopped.values) == (TrialState.PRUNED, None)
    assert [trial.number for trial in session.study.best_trials] == [0]


def test_the_study_has_the_samplers_metric_and_the_objective_beside_it(search):
    search = replace(search, sampler_metric="auto")
    for _ in range(2):  # a new session makes the same study from the journal
        with Session(search, SPACE) as session:
            for acc, nll in ((50.0, 1.5), (60.0, 1.7)) if not session.recorder.records else ():
                session.run(acc, **{"val/mean_nll": nll})
            if not session.study.get_trials(states=[TrialState.PRUNED]):
                session.run(55.0, 60, **{"val/mean_nll": 1.6})
        study = session.study
        assert study.metric_names == ["val/mean_nll"]
        assert study.best_trial.value == 1.5  # the lowest
        assert [t.user_attrs["val/mean_acc"] for t in study.trials] == [50.0, 60.0, 55.0]
        assert study.trials[2].intermediate_values == {60: 1.6}
    best = best_trial(search, read_history(search.run_folder).records)
    assert best is not None
    assert best.trial_id == "trial-001"  # by the objective


SAMPLERS = ["tpe", "gp", "cma_es", "nsga2", "qmc", "random"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_stays_inside_and_goes_on_after_a_kill(search, name):
    points = []
    for _ in range(3):
        points.append([])
        with Session(search, SPACE, name=name, startup_trials=3) as session:
            for number in range(4):
                record = session.run(-number, 240 if number % 3 else 60)
                assert 1e-5 <= record.params["optim.lr"] <= 1e-2
                assert record.params["method.text_length"] in range(2, 17)
                points[-1].append(record.params)
    first, second, third = points
    assert first != second != third  # no session repeats the points of another
    found = [trial.state for trial in session.study.trials]
    assert found.count(TrialState.PRUNED) == 6
    assert found.count(TrialState.COMPLETE) == 6


@pytest.mark.parametrize(("name", "key"), [("cma_es", "cma:"), ("nsga2", "NSGAII")])
def test_samplers_that_count_generations_continue_them_after_a_kill(search, name, key):
    def state(session):
        return [
            {k: v for k, v in trial.system_attrs.items() if key in k}
            for trial in session.study.trials
        ]

    with Session(search, SPACE, name=name, startup_trials=2) as session:
        for number in range(8):
            session.run(number)
        before = state(session)
    assert any(before)
    with Session(search, SPACE, name=name, startup_trials=2) as session:
        assert state(session) == before


def test_a_quasi_random_sequence_continues_after_a_kill(search):
    numeric = SearchSpace(parameters={"optim.lr": Float(low=0.0, high=1.0)})
    lrs = []
    for _ in range(2):
        with Session(search, numeric, name="qmc") as session:
            lrs += [session.run(0.0).params["optim.lr"] for _ in range(8)]
    # Sixteen points of one sequence are spread more evenly than two times the same eight.
    assert len({int(16 * float(lr)) for lr in lrs}) >= 13


def test_a_grid_is_every_combination_once_and_ends_the_search(search):
    run = []
    for number in (5, 100):  # the second session goes on with the remaining points
        with Session(search, SPACE, trials=number, name="grid", grid_points=3) as session:
            while (record := session.run(1.0)) is not None:
                run.append(record.params)
    assert sorted({p["method.text_length"] for p in run}) == [2, 9, 16]
    assert sorted({p["optim.lr"] for p in run}) == pytest.approx([1e-5, 10**-3.5, 1e-2])
    assert len(run) == len({tuple(p.values()) for p in run}) == 9


def test_unfinished_trials_go_on_under_their_names_after_a_kill(search):
    with Session(search, SPACE, trials=4) as session:
        session.run(50.0)
        running = session.start()
        session.report("trial-001", 40, 49.0)
        session.propose()  # asked for and never started
    with Session(search, SPACE, trials=4) as session:
        assert states(session) == {"trial-000": "COMPLETE", "trial-001": "RUNNING"}
        again = session.start()
        assert (again.trial_id, again.params) == ("trial-001", running.params)
        assert len(again.curve) == 1
        session.report("trial-001", 40, 49.5)  # a repeated step replaces the first report
        session.report("trial-001", 240, 51.0)
        session.end("trial-001")
        others = [session.run(50.0, 60), session.run(50.0)]
        assert [o.trial_id for o in others] == ["trial-002", "trial-003"]
        assert session.propose() is None
        assert session.study.trials[1].intermediate_values == {40: 49.5, 240: 51.0}
    assert states(session) == {
        "trial-000": "COMPLETE",
        "trial-001": "COMPLETE",
        "trial-002": "PRUNED",
        "trial-003": "COMPLETE",
    }
    resumed = read_history(search.run_folder).records[1]
    assert [point["val/mean_acc"] for point in resumed.curve] == [49.5, 51.0]


def test_a_kill_while_processes_start_takes_no_trial_of_the_budget(search):
    with Session(search, SPACE, trials=4) as session:
        session.propose()  # its process starts later than that of the next
        session.start()
    with Session(search, SPACE, trials=4) as session:
        names = []
        while (record := session.run(50.0)) is not None:
            names.append(record.trial_id)
    assert names == ["trial-001", "trial-000", "trial-002", "trial-003"]
    assert len(read_history(search.run_folder).records) == 4


def test_a_narrowed_space_hides_outsiders_from_the_sampler(search):
    with Session(search, SPACE) as session:
        session.run(50.0)
        session.start()
    narrowed = SPACE.model_copy(
        update={
            "parameters": {**SPACE.parameters, "optim.lr": Float(low=5e-4, high=1e-2)},
            "initial_points": [],
        }
    )
    with Session(search, narrowed) as session:
        assert "trial-000" not in states(session)  # its learning rate is 1e-4
        unfinished, new = session.run(1.0), session.run(1.0)
        assert (unfinished.trial_id, new.trial_id) == ("trial-001", "trial-002")
        assert new.params["optim.lr"] >= 5e-4
    with Session(search, SPACE) as session:  # back in the first space
        assert set(states(session)) == {"trial-000", "trial-001", "trial-002"}


@pytest.mark.parametrize("damage", [b'{"op_code": 4, "worker', b"garbage\n[]\n", b"{}\n"])
def test_a_damaged_file_of_optuna_is_made_anew(search, damage):
    with Session(search, SPACE) as session:
        session.run(50.0)
        expected = [trial.params for trial in session.study.trials]
    path = search.run_folder / "optuna.journal"
    path.write_bytes(path.read_bytes() + damage)
    (search.run_folder / "optuna.journal.lock").symlink_to("nothing")  # of a killed driver
    with Session(search, SPACE) as session:
        assert [trial.params for trial in session.study.trials] == expected
        session.run(51.0)
        assert len(session.study.trials) == 2


def test_a_database_keeps_two_searches_of_one_name_apart(search, tmp_path):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    other = replace(search, run_folder=tmp_path / "elsewhere")
    other.run_folder.mkdir()
    with Session(search, SPACE, storage=url) as here, Session(other, SPACE, storage=url) as there:
        here.run(50.0)
        assert states(there) == {}
    moved = replace(search, run_folder=search.run_folder.rename(tmp_path.with_name("moved")))
    with Session(moved, SPACE, storage=f"sqlite:///{moved.run_folder / 'optuna.db'}") as session:
        assert session.study.study_name == here.study.study_name
        assert states(session) == {"trial-000": "COMPLETE"}


@pytest.mark.parametrize("call", ["symlink", "rename"])  # acquire and release
def test_an_interruption_of_optunas_lock_is_no_failure_of_the_disk(call, search, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with Session(search, SPACE) as session:
        monkeypatch.setattr(f"os.{call}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.run(50.0)
