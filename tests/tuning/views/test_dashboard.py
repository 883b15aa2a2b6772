"""The study of optuna-dashboard in every kind of storage, and what becomes of one that fails."""

from dataclasses import replace

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tests.tuning.run_folders import search_file, trial, write_run
from trainers.errors import ConfigError
from tuning.algorithms.studies import STATES, TRIAL_ID, quiet_optuna
from tuning.config.objectives import Objective
from tuning.log.history import History
from tuning.log.records import METHOD_KEY
from tuning.results.ranking import best_trial
from tuning.run import load_run
from tuning.views.dashboard import OPTUNA_FILE, DashboardView, open_storage

SPACE = SearchSpace(parameters={"optim.lr": Float(low=1e-6, high=1e-2, log=True)})
OTHER = {"ft": SPACE, "kd": SPACE}
BOTH = (Objective("id_val/acc"), Objective("ood_val/mean_acc"))


def record(number, id_acc=85.0, ood_acc=62.0, **changes):
    return fakes.trial(number, id_acc, ood_acc, **{"params": {"optim.lr": 1e-5}, **changes})


def cut(whole, reports, outcome="running"):
    """A trial as it was after so many reports."""
    return replace(whole, outcome=outcome, curve=whole.curve[:reports], ended_at=None)


FAILED = record(3, outcome="failed", error="boom", curve=())
RECORDS = [
    fakes.reference(),
    record(0, 84.0),
    cut(record(1, 99.0), 2, "pruned"),
    record(2, 86.0, params={"optim.lr": 2e-5}),
    FAILED,
    cut(record(4), 3, "stopped"),
]


@pytest.fixture(params=[None, "sqlite:///{}/optuna.db"], ids=["file", "database"])
def opened(request, tmp_path):
    """Opens the same storage again and again, as sessions do."""
    return lambda: open_storage(tmp_path, request.param and request.param.format(tmp_path))


@pytest.fixture
def search(tmp_path):
    return fakes.Search(tmp_path, history=History(run_id="1234"), spaces={None: SPACE})


def view(search, storage):
    started = DashboardView(storage)
    started.search = search
    return started


def write(view, *records):
    """What a search that goes on, or has ended, gives to the view."""
    with quiet_optuna():
        view.write(view.search.run(records, is_live=True))


def study(storage):
    return optuna.load_study(study_name=None, storage=storage)


def told(storage):
    """What a study has of each trial, by name."""
    return {
        trial.user_attrs[TRIAL_ID]: (
            trial.state,
            trial.values if trial.state == TrialState.COMPLETE else None,
            trial.intermediate_values,
            trial.params,
        )
        for trial in study(storage).trials
    }


def expected(records):
    return {
        record.trial_id: (
            STATES[record.outcome],
            [record.metrics["val/mean_acc"]] if record.outcome == "finished" else None,
            {int(point["step"]): point["val/mean_acc"] for point in record.curve},
            record.params,
        )
        for record in records
        if record.kind == "trial" and record.is_final
    }


def test_events_and_records_make_the_same_study(opened, search):
    live = view(search, opened())
    for number, whole in enumerate(RECORDS):
        for reports in range(len(whole.curve) + 1):
            write(live, *RECORDS[:number], cut(whole, reports))
    write(live, *RECORDS)
    assert told(opened()) == expected(RECORDS)
    best = study(opened()).best_trial
    assert best.user_attrs[TRIAL_ID] == best_trial(search.goal, RECORDS).trial_id == "trial-002"
    assert study(opened()).metric_names == ["val/mean_acc"]
    assert best.user_attrs["id_val/acc"] == 86.0
    # Another session adds what it has missed, and nothing twice.
    more = [*RECORDS[:-1], record(4, 83.0), record(5, 82.0)]
    for _ in range(2):
        again = view(search, opened())
        write(again, *more)
        assert told(opened()) == expected(more)
        assert len(study(opened()).trials) == 6
    assert study(opened()).trials[-1].datetime_start.timestamp() == more[-1].started_at


def test_the_study_of_a_running_search_is_there_and_grows_as_trials_end(opened, search):
    running = view(search, opened())
    write(running, cut(record(0), 1))
    assert told(opened()) == {}
    write(running, cut(record(0), 1), record(1))  # the second one ends first
    write(running, record(0), record(1))
    assert [*told(opened())] == ["trial-001", "trial-000"]


def test_a_study_is_found_by_the_run(opened, search, tmp_path):
    renamed = replace(search, folder=search.folder / "renamed")
    other = replace(search, history=History(run_id="5678"))
    write(view(search, opened()), record(0))
    write(view(renamed, opened()), record(1))
    write(view(other, opened()), record(0))
    found = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(opened())}
    assert found == {f"{tmp_path.name} (1234)": 2, f"{tmp_path.name} (5678)": 1}


def test_all_methods_are_in_one_study(opened, search):
    kd = record(1, params={METHOD_KEY: "kd", "optim.lr": 1e-4})
    outside = record(2, params={METHOD_KEY: "ft", "optim.lr": 1.0})  # of an earlier space
    records = [record(0, params={METHOD_KEY: "ft", "optim.lr": 1e-5}), kd, outside]
    write(view(replace(search, spaces=OTHER), opened()), *records)
    assert [trial.params for trial in study(opened()).trials] == [
        *(r.params for r in records[:2]),
        {},
    ]


def test_a_finished_trial_without_a_number_is_a_failure(search):
    storage = InMemoryStorage()
    lost = record(0, curve=({"step": 240, "val/mean_acc": float("nan")},))
    write(view(search, storage), lost)
    assert study(storage).trials[0].state == TrialState.FAIL


def test_a_torn_line_and_a_lock_are_left_behind_by_a_kill(search, tmp_path):
    write(view(search, open_storage(tmp_path, None)), record(0))
    with (tmp_path / OPTUNA_FILE).open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    (tmp_path / f"{OPTUNA_FILE}.lock").symlink_to("nothing")
    write(view(search, open_storage(tmp_path, None)), record(1))
    assert told(open_storage(tmp_path, None)) == expected([record(0), record(1)])


@pytest.mark.parametrize("damage", [b"garbage\n[]\n", b"{}\n"])
def test_a_damaged_file_is_refused_and_kept(damage, search, tmp_path):
    path = tmp_path / OPTUNA_FILE
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match=OPTUNA_FILE):
        open_storage(tmp_path, None)
    assert path.read_bytes() == damage


def test_what_a_storage_has_missed_is_added_once_it_answers(search, monkeypatch):
    storage = InMemoryStorage()
    written, records = view(search, storage), [record(number) for number in range(4)]
    write(written, *records[:1])

    def down(*_, **__):
        raise ConnectionError("postgresql://ann:pa55@host is down")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "create_new_trial", down)
        with pytest.raises(ConnectionError):
            write(written, *records[:2])
    for _ in range(2):
        write(written, *records)
        assert told(storage) == expected(records)


def test_the_study_of_a_run_is_read_in_silence(images_root, tmp_path, caplog):
    run = write_run(tmp_path / "run", search_file(images_root), [trial(0, 85.0, 62.0)])
    optuna.logging.enable_propagation()
    try:
        assert len(load_run(run).study.trials) == 1
    finally:
        optuna.logging.disable_propagation()
    assert caplog.records == []
