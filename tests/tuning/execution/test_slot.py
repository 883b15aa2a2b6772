"""A slot between Ray Tune and its workers."""

import pytest

from trainers.errors import MicroBatchTooLarge
from trainers.exchange import Reported
from tuning.config.schema import ResourcesConfig
from tuning.execution import trainable
from tuning.execution.trainable import Slot
from tuning.runs.messages import MESSAGE, SteppedBack


class SmallWorkers:
    """Of their eight images, four fit into memory."""

    are_busy = False

    def __init__(self, *_):
        pass

    def ask(self, request):
        if (request.micro_batch_size or 8) > 4:
            raise MicroBatchTooLarge(4)
        return Reported({"step": 1}, is_last=True)

    def end(self):
        pass

    def stacks(self):
        return ""


@pytest.fixture
def slot(tmp_path, monkeypatch):
    monkeypatch.setattr(trainable, "KeptWorkers", SmallWorkers)
    slot = object.__new__(Slot)
    slot.storage_path, slot.resources = str(tmp_path), ResourcesConfig(workers=2)
    slot.final_split, slot.plugins = None, {}
    return slot


def test_what_fits_into_memory_is_found_once_for_all_trials_of_a_slot(slot):
    slot.setup({"trial_id": "trial-000", "trial": "{}"})
    first = [slot.step()[MESSAGE], slot.step()[MESSAGE]]
    slot.reset_config({"trial_id": "trial-001", "trial": "{}"})
    messages = [*first, slot.step()[MESSAGE]]
    assert [type(message) for message in messages] == [SteppedBack, Reported, Reported]
