"""What the driver proposes, in which order, and what it makes of errors and orders."""

import pytest

from search_spaces import Float, Int, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from trainers.config import TrialConfig
from trainers.errors import ConfigError, StorageFailed
from tuning.algorithms.studies import TRIAL_ID
from tuning.driver import End, Wait
from tuning.execution.ray_watch import RayLost, RayWatch
from tuning.log.history import read_history
from tuning.log.messages import Progressed, SteppedBack
from tuning.log.orders import send

FIRST = {"optim.lr": 1e-4, "method.text_length": 8}
SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-5, high=1e-2, log=True),
        "method.text_length": Int(low=2, high=16),
    },
    initial_points=[FIRST],
)


@pytest.fixture
def search(tmp_path):
    return fakes.Search(tmp_path)


def states(session):
    return {t.user_attrs[TRIAL_ID]: t.state.name for t in session.study.trials}


def test_references_come_first_then_initial_points_then_the_sampler(search):
    session = Session(search, SPACE, trials=2, references=("ft",))
    reference = session.run(50.0)
    assert (reference.trial_id, reference.params) == ("ft", {})
    assert states(session) == {}  # it never reaches the study
    first, second = session.propose(), session.propose()
    assert (first.trial_id, first.params) == ("trial-000", FIRST)
    assert second.trial_id == "trial-001"
    assert second.params.keys() == FIRST.keys()
    assert isinstance(session.driver.next(), End)


@pytest.mark.parametrize(
    "error", [ConfigError("too long", key="method.text_length"), ZeroDivisionError("of a plug-in")]
)
def test_a_proposal_that_does_not_validate_is_a_failed_trial(error, search):
    def config_of(record):
        if record.number == 0:
            raise error
        return TrialConfig()

    session = Session(search, SPACE, config_of=config_of)
    assert session.propose().trial_id == "trial-001"
    (failed,) = read_history(search.folder, live=True).records
    assert (failed.trial_id, failed.outcome) == ("trial-000", "failed")
    assert failed.error == f"{type(error).__name__}: {error}"
    assert states(session) == {"trial-000": "FAIL", "trial-001": "RUNNING"}


def test_a_kill_while_processes_start_takes_no_trial_of_the_budget(search):
    with Session(search, SPACE, trials=4) as session:
        session.propose()  # its process starts later than that of the next
        session.start()
    with Session(search, SPACE, trials=4) as session:
        names = []
        while (record := session.run(50.0)) is not None:
            names.append(record.trial_id)
    assert names == ["trial-001", "trial-000", "trial-002", "trial-003"]
    assert len(read_history(search.folder).records) == 4


def test_trials_outside_of_a_narrowed_space_are_unknown_to_the_sampler(search):
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


def test_a_point_that_is_enqueued_after_the_last_of_the_sampler_is_tried(search):
    session = Session(search, SPACE, name="grid", grid_points=2)
    started = []
    while isinstance(found := session.driver.next(), dict):
        session.driver.started(found["trial_id"])
        started.append(found["trial_id"])
    assert isinstance(found, Wait)
    for trial_id in started[1:]:
        session.end(trial_id)
    send(search.folder, {"enqueue": {"optim.lr": 2e-3, "method.text_length": 5}})
    session.driver.turn()
    assert session.driver.next()["params"] == {"optim.lr": 2e-3, "method.text_length": 5}
    for trial_id in (started[0], f"trial-{len(started):03d}"):
        session.end(trial_id)
    assert isinstance(session.driver.next(), End)


def test_a_trial_is_not_blamed_for_the_loss_of_ray(tmp_path):
    watch = RayWatch({"raylet": ("127.0.0.1", 1)})
    session = Session(fakes.Search(tmp_path), SPACE, check_ray=watch.check)
    trial_id = session.start().trial_id
    with pytest.raises(RayLost, match="raylet"):
        session.end(trial_id, error=True)
    session.driver.finish("stopped")
    assert [record.outcome for record in read_history(tmp_path).records] == ["stopped"]


def test_a_trial_that_the_user_stops_ends_between_two_reports(tmp_path):
    session = Session(fakes.Search(tmp_path), SPACE)
    trial_id = session.start().trial_id
    assert session.driver.answered(trial_id, Progressed())
    send(tmp_path, {"stop": trial_id})
    session.driver.turn()
    assert not session.driver.answered(trial_id, Progressed())
    (record,) = read_history(tmp_path, live=True).records
    assert (record.outcome, record.reason) == ("pruned", "stopped by the user")


def test_a_lost_process_ends_the_search_only_if_the_storage_failed(tmp_path):
    driver = Session(fakes.Search(tmp_path), SPACE).driver
    driver.lost("trial-000", RuntimeError("its process is gone"))
    wrapped = RuntimeError("of a worker")
    wrapped.__cause__ = StorageFailed("no space left")
    with pytest.raises(StorageFailed, match="no space left"):
        driver.lost("trial-000", wrapped)


OF_RAY = SteppedBack("RayActorError: a worker died")
OWN = SteppedBack("KeyError: 'label'\nTraceback ...", is_own=True)
OTHER = SteppedBack("ValueError: of an image", is_own=True)
PARTS = SteppedBack("MicroBatchTooLarge: 4", is_own=True, is_counted=False)
LOST = RuntimeError("its process is gone")


@pytest.mark.parametrize(
    ("story", "goes_on"),
    [
        ([OF_RAY, OF_RAY], True),
        ([OF_RAY, OF_RAY, OF_RAY], False),
        ([LOST, OF_RAY, OF_RAY], False),  # one count
        ([OF_RAY, OF_RAY, 20, OF_RAY, OF_RAY], True),
        ([OF_RAY, OF_RAY, 10, OF_RAY], False),  # it repeats its last report
        ([OWN], True),
        ([OWN, OWN], False),
        ([OWN, OTHER], True),
        ([OWN, OF_RAY], True),
        ([OWN, 20, OWN], True),
        ([PARTS, SteppedBack("MicroBatchTooLarge: 2", True, False), OF_RAY, OF_RAY], True),
    ],
)
def test_a_trial_goes_on_as_long_as_it_gets_on(story, goes_on, tmp_path):
    session = Session(fakes.Search(tmp_path), SPACE, max_failures=2)
    driver, trial_id = session.driver, session.start().trial_id
    session.report(trial_id, 10, 50.0)
    for event in story:
        match event:
            case int():
                found = session.report(trial_id, event, 50.0)
            case SteppedBack():
                found = driver.answered(trial_id, event)
            case error:
                driver.lost(trial_id, error)
    assert found == goes_on
    (record,) = session.recorder.records.values()
    assert record.outcome == ("running" if goes_on else "failed")
    if not goes_on:
        assert record.error == story[-1].error


def test_a_trial_that_a_budget_stops_has_the_reason_until_it_goes_on(tmp_path):
    session = Session(fakes.Search(tmp_path), SPACE)
    trial_id = session.start().trial_id
    session.driver.budget.is_ended = True
    assert not session.driver.turn()
    (stopped,) = session.driver.finish("finished").records
    assert (stopped.outcome, stopped.reason) == ("stopped", "`lipsum-tune control --end`")
    session.journal.close()
    (again,) = Session(fakes.Search(tmp_path), SPACE).driver.recorder.records.values()
    assert again.reason == stopped.reason
    session = Session(fakes.Search(tmp_path), SPACE)
    session.driver.started(trial_id)
    assert session.recorder.records[trial_id].reason == ""
