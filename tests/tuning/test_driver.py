"""What the driver makes of errors; what it proposes and records is tested beside its parts."""

import pytest

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from trainers.errors import StorageFailed
from tuning.execution.ray_watch import RayLost, RayWatch
from tuning.runs.history import read_history

SPACE = SearchSpace(parameters={"optim.lr": Float(low=1e-5, high=1e-2, log=True)})


def test_a_trial_is_not_blamed_for_the_loss_of_ray(tmp_path):
    watch = RayWatch({"raylet": ("127.0.0.1", 1)}, "resume it")
    session = Session(fakes.search_record(tmp_path), SPACE, check_ray=watch.check)
    trial_id = session.start().trial_id
    with pytest.raises(RayLost, match="raylet"):
        session.end(trial_id, error=True)
    session.driver.finish("stopped")
    assert [record.outcome for record in read_history(tmp_path).records] == ["stopped"]


def test_a_lost_process_ends_the_search_only_if_the_storage_failed(tmp_path):
    driver = Session(fakes.search_record(tmp_path), SPACE).driver
    driver.lost(RuntimeError("its process is gone"))
    wrapped = RuntimeError("of a worker")
    wrapped.__cause__ = StorageFailed("no space left")
    with pytest.raises(StorageFailed, match="no space left"):
        driver.lost(wrapped)


def test_a_trial_that_a_budget_stops_has_the_reason_until_it_goes_on(tmp_path):
    session = Session(fakes.search_record(tmp_path), SPACE)
    trial_id = session.start().trial_id
    session.driver.budget.is_ended = True
    assert not session.driver.turn()
    (stopped,) = session.driver.finish("finished").records
    assert (stopped.outcome, stopped.reason) == ("stopped", "`lipsum-tune control --end`")
    session.journal.close()
    (again,) = Session(fakes.search_record(tmp_path), SPACE).driver.recorder.records.values()
    assert again.reason == stopped.reason
    session = Session(fakes.search_record(tmp_path), SPACE)
    session.driver.started(trial_id)
    assert session.recorder.records[trial_id].reason == ""
