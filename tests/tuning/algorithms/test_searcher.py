"""The order of proposals: unfinished trials, references, points of the samplers."""

import pytest

from search_spaces import Float, Int, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from trainers.config import TrialConfig
from trainers.errors import ConfigError
from tuning.algorithms.studies import TRIAL_ID
from tuning.driver import End
from tuning.runs.history import read_history

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
    return fakes.search_record(tmp_path)


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
    (failed,) = read_history(search.run_folder, live=True).records
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
    assert len(read_history(search.run_folder).records) == 4


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
