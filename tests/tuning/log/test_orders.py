"""Orders to a running search: followed once, kept over kills, left out where they are none."""

import json
from contextlib import closing

import pytest
from typer.testing import CliRunner

from tests.tuning.execution import instant
from tests.tuning.execution.inline_tuner import killed_at_write, without_ray
from tests.tuning.execution.instant import (
    instant_file,
    num_reports,
    resume_instantly,
    run_instantly,
    start,
    write_instant,
)
from tests.tuning.execution.slot import HOLD
from tests.tuning.run_folders import LR, WEIGHT
from tests.waiting import wait_until
from tuning.cli import app
from tuning.log.history import read_history
from tuning.log.journal import Journal
from tuning.log.orders import CONTROL_FOLDER, recorded_orders, send

POINT = {LR: 3e-4, WEIGHT: 2.0}
NO_ORDERS = [
    *({"enqueue": value} for value in (5, [1], None, {LR: [1]}, {LR: 10**400, WEIGHT: 1.0})),
    *({"stop": value} for value in ([1], {}, None)),
    [["stop", [1]]],
]
ORDERS = [{"stop": "trial-000"}, {"enqueue": POINT}, {"enqueue": {LR: 7.0}}, {"stop": 3}]


class Search:
    """Four trials, one at a time; orders or texts of files come before the report of a number."""

    def __init__(self, root, runs, orders):
        self.root, self.runs, self.orders, self.reports = root, runs, orders, 0
        self.folder = runs / "small"

    def choose(self, running):
        for number, order in enumerate(self.orders.get(self.reports, ())):
            if isinstance(order, dict):
                send(self.folder, order)
            else:
                (self.folder / CONTROL_FOLDER).mkdir(exist_ok=True)
                (self.folder / CONTROL_FOLDER / f"{number}.json").write_text(order)
        self.reports += 1
        return 0

    def session(self):
        with without_ray(mlflow=False, choose=self.choose):
            if (self.folder / "journal.jsonl").exists():
                resume_instantly(self.folder)
            else:
                settings = {"search__budget__trials": 4, "search__sampler__name": "random"}
                run_instantly(instant_file(self.root, self.runs, **settings))

    @property
    def trials(self):
        return read_history(self.folder).records


@pytest.fixture
def searching(images_root, tmp_path):
    return lambda orders, name="runs": Search(images_root, tmp_path / name, orders)


def test_a_trial_is_stopped_and_a_point_tried_next(searching):
    search = searching({0: ORDERS})
    search.session()
    first, second, *rest = search.trials
    assert (first.outcome, first.step) == ("pruned", 4)  # the report after that with the order
    assert first.reason == "stopped by the user"
    assert (second.params, second.is_first_point) == (POINT, True)
    assert [record.outcome for record in (second, *rest)] == ["finished"] * 3


def test_what_is_no_order_is_left_out_by_a_search_and_its_resume(searching, caplog):
    texts = [*map(json.dumps, NO_ORDERS), "", "[]", '{"end": tr', "7", "[" * 200_000]
    search = searching({0: texts, 3: [{"end": True}]})
    search.session()
    named = sum("is no order" in message for message in caplog.messages)
    assert named == len(texts) - 1  # a point outside of the space is an order
    with closing(Journal(search.folder)) as journal:  # as earlier versions wrote them
        for order in NO_ORDERS[:-1]:
            journal.controlled(order, "")
    search.session()
    assert [record.outcome for record in search.trials] == ["finished"] * 4


def test_a_search_is_ended_in_order_and_can_go_on(searching):
    search = searching({3: [{"end": True}]})
    search.session()
    history = read_history(search.folder)
    assert [record.outcome for record in history.records] == ["finished", "stopped"]
    assert history.outcome == "finished"
    assert (search.folder / "trials.csv").is_file()
    search.session()
    assert [record.outcome for record in search.trials] == ["finished"] * 4


def test_an_end_that_is_ordered_while_a_search_prepares_is_followed(searching, monkeypatch):
    search, measured = searching({}), instant.zero_shot

    def prepare(*_, **__):
        send(search.folder, {"end": True})
        return measured()

    with monkeypatch.context() as patched:
        patched.setattr(instant, "zero_shot", prepare)
        search.session()
    history = read_history(search.folder)
    assert history.outcome == "finished"
    assert len(history.records) < 4
    search.session()  # it is no order to the next one
    assert [record.outcome for record in search.trials] == ["finished"] * 4


def test_no_order_is_lost_or_followed_twice_over_a_kill(searching):
    kills = 0
    for number in range(8, 50, 7):
        search = searching({0: ORDERS}, f"runs-{number}")
        with killed_at_write(number, search.runs):
            search.session()
        if read_history(search.folder).outcome is None and search.reports:
            kills += 1
            search.session()
            assert [record.params for record in search.trials].count(POINT) == 1
            assert search.trials[0].outcome == "pruned"
            assert len(search.trials) == 4
    assert kills > 2


@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray")
def test_the_command_steers_a_search_on_a_real_ray(images_root, tmp_path):
    folder = tmp_path / "small"
    file = instant_file(images_root, tmp_path, search__budget__trials=1000)
    (tmp_path / HOLD).touch()

    def control(*words):
        before = len(recorded_orders(read_history(folder)))
        done = CliRunner().invoke(app, ["control", str(folder), *words])
        assert done.exit_code == 0, done.output
        wait_until(lambda: len(recorded_orders(read_history(folder))) > before)

    with start(write_instant(tmp_path / "config", file), tmp_path / "log") as driver:
        wait_until(lambda: num_reports(folder) == 1)
        control("--stop", "0")
        control("--enqueue", "lr=3e-4,reg_weight=2")
        (tmp_path / HOLD).unlink()
        wait_until(lambda: num_reports(folder) > 5)
        control("--end")
        assert driver.wait() == 0
    records = read_history(folder).records
    assert (records[0].outcome, records[1].params) == ("pruned", POINT)
    assert 2 < len(records) < 1000
