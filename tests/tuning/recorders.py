"""Events of Ray Tune for a recorder, made by hand."""

from ray.tune.experiment import Trial

from tests.tuning import fakes
from tuning.runs.callbacks import Callback


class Notes(Callback):
    """Writes down every event."""

    def __init__(self):
        self.events = []

    def search_started(self, search):
        self.events.append(("search_started", search.name, ""))

    def trial_started(self, record):
        self.events.append(("started", record.trial_id, record.outcome))

    def trial_progressed(self, record):
        self.events.append(("progressed", record.trial_id, str(record.trained_steps)))

    def trial_reported(self, record):
        self.events.append(("reported", record.trial_id, str(record.step)))

    def trial_ended(self, record):
        self.events.append(("ended", record.trial_id, record.outcome))

    def search_ended(self, records, outcome):
        self.events.append(("search_ended", str(len(records)), outcome))


def tune_trial(name="trial-000"):
    return Trial("stub", stub=True, config={"trial_id": name})


def report(r, trial, step, **more):
    r.on_trial_result(0, [], trial, {**fakes.report(step, 84.0, 61.0), **more, "pid": 7})
