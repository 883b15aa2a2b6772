"""A slot between Ray Tune and its workers: what an error of these is for the driver."""

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from trainers.errors import ConfigError, MicroBatchTooLarge, StorageFailed, TrainingDiverged
from trainers.exchange import Reported
from tuning.config.schema import ResourcesConfig
from tuning.execution import slot as module
from tuning.execution.slot import Slot
from tuning.log.messages import MESSAGE, Failed, SteppedBack

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection reset by peer")
BUG = ZeroDivisionError("division by zero")


@pytest.fixture
def slot(tmp_path, monkeypatch):
    """A slot whose workers raise the errors in `slot.raises`, then report."""

    class Workers:
        are_busy = False

        def __init__(self, *_):
            pass

        def ask(self, request):
            if (request.micro_batch_size or 8) > slot.fits:
                raise WorkerGroupError("page", {0: MicroBatchTooLarge(slot.fits)})
            if slot.raises:
                raise WorkerGroupError("page", dict(enumerate(slot.raises.pop(0))))
            return Reported({"step": 1}, is_last=True)

        def end(self):
            pass

    monkeypatch.setattr(module, "KeptWorkers", Workers)
    slot = object.__new__(Slot)
    slot.storage_path, slot.resources = str(tmp_path), ResourcesConfig(workers=2)
    slot.final_split, slot.plugins, slot.raises, slot.fits = None, {}, [], 8
    slot.setup({"trial_id": "trial-000", "trial": "{}"})
    return slot


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([BUG], SteppedBack("ZeroDivisionError: division by zero", is_own=True)),
        ([DEAD, PEER], SteppedBack("ActorDiedError: The actor died unexpectedly", is_own=False)),
        ([TrainingDiverged("nan at step 3")], Failed("TrainingDiverged: nan at step 3")),
        ([PEER, ConfigError("no image", key="k")], Failed("ConfigError: k: no image")),
    ],
)
def test_an_error_of_workers_is_a_message(errors, message, slot):
    slot.raises = [errors]
    found = slot.step()[MESSAGE]
    assert type(found) is type(message)
    assert found.error.startswith(message.error)
    assert getattr(found, "is_own", None) == getattr(message, "is_own", None)
    assert isinstance(slot.step()[MESSAGE], Reported)  # new workers


def test_a_storage_that_fails_ends_the_search(slot):
    slot.raises = [[StorageFailed("no space left")]]
    with pytest.raises(WorkerGroupError):
        slot.step()


def test_what_fits_into_memory_is_found_once_for_all_trials_of_a_slot(slot):
    slot.fits = 4
    first = [slot.step()[MESSAGE], slot.step()[MESSAGE]]
    slot.reset_config({"trial_id": "trial-001", "trial": "{}"})
    messages = [*first, slot.step()[MESSAGE]]
    assert [type(message) for message in messages] == [SteppedBack, Reported, Reported]
    assert not messages[0].is_counted
