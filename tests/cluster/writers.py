"""One of several searches that write to the same MLflow and the same Optuna database at once."""

import logging
from dataclasses import replace

import optuna
from optuna.distributions import FloatDistribution

from search_spaces import SearchSpace
from search_spaces.distributions import Float
from tests.tuning import fakes
from tuning.algorithms.studies import create_studies
from tuning.config.schema import SamplerConfig
from tuning.runs.journal import Journal
from tuning.runs.records import trial_name
from tuning.views.callback import write_results
from tuning.views.dashboard import DashboardView, open_storage
from tuning.views.mlflow.callback import MlflowCallback

TRIALS = 5
SHARED = "shared"
LR = "optim.lr"


def search_name(number):
    return f"writer-{number}"


def trial_record(number, trial, lr):
    """What that writer says of that trial; no two say the same."""
    record = fakes.trial(trial, id_acc=80.0 + number, ood_acc=50.0 + number + trial / 10)
    return replace(record, params={LR: lr})


def write_search(number, tracking_uri, study_url, folder, start):
    """All that a search writes, trial by trial, and the same number of trials of a shared study."""
    logging.basicConfig(level=logging.ERROR)
    name = search_name(number)
    search = fakes.search_record(folder / name, name=name)
    search.run_folder.mkdir()
    space = SearchSpace(parameters={LR: Float(low=1e-6, high=1e-2, log=True)})
    distribution = FloatDistribution(1e-6, 1e-2, log=True)
    start.wait()
    journal = Journal(search.run_folder)
    journal.session_started({})
    journal.zero_shot(search.zero_shot)
    search = replace(search, run_id=journal.run_id)
    callback = MlflowCallback(tracking_uri, "lipsum", interval_seconds=0.1)
    callback.search_started(search)
    sampler = SamplerConfig(name="random", seed=number)
    studies = create_studies(search, space, sampler)
    view = DashboardView(open_storage(search.run_folder, study_url), space)
    view.search_started(search)
    shared = optuna.create_study(storage=study_url, study_name=SHARED, load_if_exists=True)
    records = []
    for index in range(TRIALS):
        proposed = studies.propose(index, trial_name(index))
        assert proposed is not None
        record = trial_record(number, index, float(proposed.params[LR]))
        running = replace(record, outcome="running", curve=(), ended_at=None)
        journal.trial_started(running)
        view.trial_started(running)
        for length in range(1, len(record.curve) + 1):
            journal.trial_reported(replace(running, curve=record.curve[:length]))
        studies.trial_ended(record)
        journal.trial_ended(record)
        view.trial_ended(record)
        records.append(record)
        common = shared.ask({LR: distribution})
        common.set_user_attr("writer", number)
        shared.tell(common, common.params[LR])
    write_results(search, records)
    journal.session_ended("finished")
    callback.search_ended(records, "finished")
    assert callback.is_complete
