"""Trials that share workers, each as in a process of its own. Slow: real workers on a real Ray."""

import os
import signal
import threading
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest
import ray.train
import torch
import torch.distributed as dist
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.util.state import list_actors
from rich.console import Console
from safetensors.torch import load_file

from tests.tuning.execution.real_searches import EQUAL_TRIALS, real_file, untimed
from tests.waiting import wait_until
from trainers.checkpoints.format import WEIGHTS
from trainers.checkpoints.storage import prepare_folder
from trainers.data.storage import open_store
from trainers.exchange import Exchange, Request
from tuning.config.schema import ResourcesConfig
from tuning.execution.ray_session import ray_session
from tuning.execution.retries import fit
from tuning.execution.warm_workers import ReportOverdue, WarmWorkers, end_if_overdue
from tuning.runs.callbacks import Callback
from tuning.search import run_search

pytestmark = pytest.mark.ray

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def _connected(ray_head):
    with ray_session(ray_head.address):
        yield


def run(workers, config, folder, reports):
    """The first reports of a trial."""
    prepare_folder(open_store(folder))
    request = Request(str(folder), config.model_dump_json())
    answers = []
    while len(answers) < reports:
        answer = workers.ask(request, HOUR_S)
        if answer.metrics or answer.diverged:
            answers.append(answer)
    return answers


def weights(folder):
    (file,) = folder.glob(f"checkpoint_*/{WEIGHTS}")
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_trial_equals_the_same_one_in_a_fresh_process(num_workers, trial, tmp_path):
    """Before it, one trial ends, one is stopped and one diverges in the same workers.

    The fresh one stores the zero-shot model's features, which the others read.
    """
    trial = trial.model_copy(update={"zero_shot_cache_gb": 1})
    resources = ResourcesConfig(workers=num_workers)
    last = fit(trial.model_dump_json(), name="fresh", storage_path=tmp_path, resources=resources)
    workers = WarmWorkers(resources.per_trial())
    other = trial.model_copy(update={"seed": 5})
    run(workers, other, tmp_path / "ended", 2)
    run(workers, other, tmp_path / "stopped", 1)
    if num_workers == 1:  # several workers end, because others may wait for the diverged one
        optim = trial.optim.model_copy(update={"lr": 1e3})
        (diverged,) = run(
            workers, trial.model_copy(update={"optim": optim}), tmp_path / "diverged", 1
        )
        assert "not a finite number" in str(diverged.diverged)
    first, second = run(workers, trial, tmp_path / "warm", 2)
    workers.end()
    assert untimed(second.metrics) == untimed({"step": 6, **last})
    assert first.metrics["step"] == 3
    assert weights(tmp_path / "warm") == weights(tmp_path / "fresh")


def test_a_trial_is_timed_once_every_node_has_its_images(trial, tmp_path, monkeypatch):
    """The second worker fills its cache until the first one waits, or has started the clock."""
    events = tmp_path / "events"
    events.touch()

    def note(event):
        with events.open("a") as file:
            file.write(f"{event}\n")

    class Noted:
        """The exchange; notes the start of the clock."""

        def __init__(self, exchange):
            self._exchange = exchange

        def __getattr__(self, name):
            if name == "training":
                note("clock")
            return getattr(self._exchange, name)

    def serve(values):
        ray_trainer = import_module("trainers.ray_trainer")
        fill_cache, barrier = ray_trainer.fill_cache, ray_trainer.barrier

        def fill_last(config):
            fill_cache(config)
            while not events.read_text():
                time.sleep(0.05)
            note("filled")

        def noted_barrier():
            note("waits")
            barrier()

        if ray.train.get_context().get_world_rank() == 0:
            ray_trainer.barrier = noted_barrier
            ray_trainer.serve({"exchange": Noted(values["exchange"])})
        else:
            ray_trainer.fill_cache = fill_last
            ray_trainer.serve(values)

    monkeypatch.setattr("tuning.execution.warm_workers.serve", serve)
    workers = WarmWorkers(ResourcesConfig(workers=2).per_trial())
    run(workers, trial, tmp_path / "trial", 1)
    workers.end()
    assert events.read_text().splitlines()[:3] == ["waits", "filled", "clock"]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_lost_worker_does_not_count_as_hanging(is_lost):
    exchange, worker = (actor.options(num_cpus=0).remote() for actor in [ray.remote(Exchange)] * 2)
    ray.get(exchange.training.remote(cloudpickle.dumps(worker)))
    if is_lost:
        ray.kill(worker)
        wait_until(lambda: is_dead(worker))
    with nullcontext() if is_lost else pytest.raises(ReportOverdue):
        end_if_overdue(exchange, 0.0)
    assert ray.get(exchange.waits.remote()) == is_lost  # for its replacement
    wait_until(lambda: is_dead(worker))


def is_dead(actor):
    try:
        ray.get(actor.waits.remote())
    except RayActorError:
        return True
    return False


def test_a_slot_knows_how_far_its_trial_is_and_may_end_it_there(trial, tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.execution.warm_workers.POLL_S", 0.01)
    trial = trial.model_validate(trial.model_dump() | {"steps": 2000, "eval": {"every": 20}})
    prepare_folder(open_store(tmp_path))
    request = Request(str(tmp_path), trial.model_dump_json())
    workers = WarmWorkers(ResourcesConfig().per_trial())
    answer = workers.ask(request, HOUR_S)
    while answer.metrics or not answer.train_curve:  # they start, or have just reported
        answer = workers.ask(request, HOUR_S)
    (step,) = answer.train_curve["step"]
    assert step % 20 == 10
    own = [("job_id", "=", ray.get_runtime_context().get_job_id()), ("state", "=", "ALIVE")]
    actors = list_actors(ray.get_runtime_context().gcs_address, own)
    assert {actor.class_name for actor in actors} == {
        "Exchange",
        "PreemptionWatcher",
        "RayTrainWorker",
        "SynchronizationActor",
        "TrainController",
    }
    workers.end()  # they take the request with their next report
    assert workers.ask(request, HOUR_S).metrics["step"] % 20 == 0
    with pytest.raises(RuntimeError, match="have ended without a report"):
        workers.ask(request, HOUR_S)


class Kills(Callback):
    """Kills the processes of a class of Ray's actors at the first report of a trial."""

    def __init__(self, victims):
        self.waiting = dict(victims)

    def trial_reported(self, record):
        victim = self.waiting.pop(record.trial_id, None)
        if victim is None:
            return
        filters = [("state", "=", "ALIVE"), ("class_name", "=", victim)]
        alive = list_actors(ray.get_runtime_context().gcs_address, filters)
        assert alive
        for actor in alive:
            os.kill(actor.pid, signal.SIGKILL)


@pytest.mark.cluster
def test_every_process_of_a_slot_may_be_killed(images_root, tmp_path):
    """Each of them is a lost machine of the trial, which goes on from its checkpoint."""
    victims = ("RayTrainWorker", "ResourceTrainable", "Exchange")
    kills = Kills({f"trial-{number:03d}": victim for number, victim in enumerate(victims)})
    file = real_file(
        images_root,
        tmp_path,
        **EQUAL_TRIALS,
        search__budget__trials=len(victims),
        search__resources__max_failures=1,
    )
    found = run_search(file, callbacks=[kills], console=Console(quiet=True))
    assert [record.outcome for record in found.history.records] == ["finished"] * len(victims)
    assert kills.waiting == {}
    first, *others = ([*map(untimed, record.curve)] for record in found.history.records)
    assert [report["step"] for report in first] == [3, 6, 9]
    assert all(other == first for other in others)


@pytest.mark.nightly
def test_a_hanging_trial_fails_and_the_next_one_does_not(images_root, tmp_path):
    """One worker hangs, the other one in the collective operation that waits for it."""
    parameters = {
        "method.waits": {"type": "categorical", "choices": [False, True]},
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3},
    }
    points = [
        {"method.waits": waits, "optim.lr": lr}
        for waits, lr in ((False, 1e-4), (True, 2e-4), (False, 3e-4))
    ]
    file = real_file(
        images_root,
        tmp_path,
        plugins=[str(Path(__file__).with_name("hangs.py"))],
        trial__method={"name": "hangs"},
        search__space={"name": None, "parameters": parameters, "initial_points": points},
        search__budget__trials=3,
        search__resources={"max_concurrent": 1, "workers": 2, "hang_after_s": 5},
    )
    found = run_search(file, console=Console(quiet=True))
    ended = [record.outcome for record in found.history.records]
    assert ended == ["finished", "failed", "finished"]
    (failed,) = found.failed
    assert failed.step == 3
    assert str(failed.error).startswith("ReportOverdue: no report after ")


@pytest.mark.nightly
def test_a_collective_operation_that_hangs_is_repeated_with_new_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.ray_trainer.COLLECTIVE_TIMEOUT_S", 5)
    hung = tmp_path / "hung"

    def loop(values):
        if ray.train.get_context().get_world_rank() == 1 and not hung.exists():
            hung.touch()
            threading.Event().wait()
        ranks = torch.tensor([1.0])
        dist.all_reduce(ranks)
        return float(ranks)

    resources = ResourcesConfig(workers=2)
    assert fit("{}", name="hangs", storage_path=tmp_path, resources=resources, loop=loop) == 2
    assert hung.exists()
