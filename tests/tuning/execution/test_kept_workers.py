"""Trials that share workers, each as in a process of its own. Slow: real workers on a real Ray."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.util.state import list_actors
from rich.console import Console
from safetensors.torch import load_file

from tests.tuning.execution.real_searches import EQUAL_TRIALS, real_file, untimed
from trainers.checkpoints.format import WEIGHTS
from trainers.checkpoints.storage import prepare_folder
from trainers.config import TrialConfig
from trainers.data.store import open_store
from trainers.exchange import Progressed, Reported, Request
from trainers.methods.registry import texts_of
from trainers.ray_trainer import torch_trainer
from tuning.config.schema import ResourcesConfig
from tuning.execution.kept_workers import KeptWorkers
from tuning.execution.ray_session import ray_session
from tuning.execution.slot import Slot
from tuning.log.callbacks import Callback
from tuning.log.messages import MESSAGE
from tuning.search import run_search

pytestmark = pytest.mark.ray

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def _connected(ray_head):
    with ray_session(ray_head.address):
        yield


def run(workers, config, folder, reports):
    prepare_folder(open_store(folder))
    request = Request(str(folder), config.model_dump_json())
    answers = []
    while len(answers) < reports:
        answer = workers.ask(request)
        if not isinstance(answer, Progressed):
            answers.append(answer)
    return answers


def weights(folder):
    (file,) = folder.glob(f"checkpoint_*/{WEIGHTS}")
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_trial_equals_the_same_one_in_a_fresh_process(num_workers, trial, tmp_path):
    """Before it, one trial ends, one is stopped and one diverges in the same workers.

    The fresh one stores the zero-shot model's features, which the others read.
    """
    trial = trial.model_copy(update={"zero_shot_cache_gb": 1})
    options = ResourcesConfig(workers=num_workers).per_trial()
    fresh = KeptWorkers(HOUR_S, options)
    expected = run(fresh, trial, tmp_path / "fresh", 2)
    fresh.end()
    workers = KeptWorkers(HOUR_S, options)
    other = trial.model_copy(update={"seed": 5})
    run(workers, other, tmp_path / "ended", 2)
    run(workers, other, tmp_path / "stopped", 1)
    if num_workers == 1:  # several workers end, because others may wait for the diverged one
        optim = trial.optim.model_copy(update={"lr": 1e3})
        (diverged,) = run(
            workers, trial.model_copy(update={"optim": optim}), tmp_path / "diverged", 1
        )
        assert "not a finite number" in diverged.error
    found = run(workers, trial, tmp_path / "warm", 2)
    workers.end()
    assert [untimed(one.metrics) for one in found] == [untimed(one.metrics) for one in expected]
    assert [one.metrics["step"] for one in found] == [3, 6]
    assert weights(tmp_path / "warm") == weights(tmp_path / "fresh")


def test_workers_end_within_some_steps(trial, tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.execution.kept_workers.POLL_S", 0.01)
    long = trial.model_validate(trial.model_dump() | {"steps": 2000, "eval": {"every": 20}})
    prepare_folder(open_store(tmp_path))
    request = Request(str(tmp_path), long.model_dump_json())
    workers = KeptWorkers(HOUR_S, ResourcesConfig().per_trial())
    answer = workers.ask(request)
    while not answer.train_curve:  # they start
        answer = workers.ask(request)
    workers.end()  # in the middle of a training
    with pytest.raises(RuntimeError, match="have ended without a report"):
        workers.ask(request)


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_trial_that_is_stopped_between_two_reports_makes_room_for_the_next(
    num_workers, trial, tmp_path, monkeypatch
):
    monkeypatch.setattr("tuning.execution.kept_workers.POLL_S", 0.01)
    length = {"steps": 10_000, "eval": {"every": 10_000}}
    long = TrialConfig.model_validate(trial.model_dump() | length)
    common = {"storage_path": str(tmp_path), "final_split": None, "plugins": {}}
    kind = type("Played", (Slot,), common | {"resources": ResourcesConfig(workers=num_workers)})
    slot = kind.__new__(kind)  # as Tune makes one, without its loggers
    slot.setup({"trial_id": "stopped", "trial": long.model_dump_json()})
    while not getattr(slot.step()[MESSAGE], "train_curve", None):
        pass
    slot.reset_config({"trial_id": "next", "trial": trial.model_dump_json()})
    while not isinstance(message := slot.step()[MESSAGE], Reported):
        assert isinstance(message, Progressed)
    assert message.metrics["step"] == 3
    slot.cleanup()


def test_workers_that_wait_for_a_place_say_so(trial, tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.execution.kept_workers.POLL_S", 0.1)
    monkeypatch.setattr("tuning.execution.kept_workers.START_S", 0.0)
    group = ray.util.placement_group([{"CPU": 2}])  # all of this Ray
    ray.get(group.ready())
    prepare_folder(open_store(tmp_path))
    request = Request(str(tmp_path), trial.model_dump_json())
    workers = KeptWorkers(HOUR_S, ResourcesConfig().per_trial())
    assert all(workers.ask(request).waits for _ in range(5))
    ray.util.remove_placement_group(group)
    while not isinstance(workers.ask(request), Reported):
        pass
    workers.end()


def test_workers_import_a_plugin_as_the_search_did(trial, tmp_path):
    plugin = tmp_path / "passing.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from trainers.methods import register_method\n"
        "from trainers.methods.base import Method\n"
        "@register_method('passing')\n"
        "class Passing(Method):\n"
        "    name: Literal['passing'] = 'passing'\n"
    )
    values = {"plugins": [str(plugin)], "method": {"name": "passing"}, "steps": 3}
    config = TrialConfig.model_validate(trial.model_dump() | values)
    plugin.write_text("raise RuntimeError('edited while the search ran')")
    prepare_folder(open_store(tmp_path / "trial"))
    request = Request(
        str(tmp_path / "trial"), config.model_dump_json(), plugins=texts_of(config.plugins)
    )
    workers = KeptWorkers(HOUR_S, ResourcesConfig().per_trial())
    while not isinstance(answer := workers.ask(request), Reported):
        pass
    assert answer.metrics["step"] == 3
    workers.end()


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
    assert [record.outcome for record in found.run.history.records] == ["finished"] * len(victims)
    assert kills.waiting == {}
    first, *others = ([*map(untimed, record.curve)] for record in found.run.history.records)
    assert [report["step"] for report in first] == [3, 6, 9]
    assert all(other == first for other in others)


@pytest.mark.cluster
@pytest.mark.nightly
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_hang_is_found_repeated_and_is_no_other_trials(
    num_workers, images_root, tmp_path, caplog
):
    """One trial hangs once, one always. Of two workers, one waits for the other that hangs."""
    once = tmp_path / "once"
    parameters = {
        "method.waits": {"type": "categorical", "choices": ["never", "once", "always"]},
        "optim.lr": {"type": "categorical", "choices": [1e-4]},
    }
    points = [{"method.waits": w, "optim.lr": 1e-4} for w in ("never", "once", "always")]
    resources = {"workers": num_workers, "hang_after_s": 15, "max_failures": 1}
    file = real_file(
        images_root,
        tmp_path,
        plugins=[str(Path(__file__).with_name("hangs.py"))],
        trial__method={"name": "hangs", "file": str(once)},
        search__space={"name": None, "parameters": parameters, "initial_points": points},
        search__budget__trials=3,
        search__resources={"max_concurrent": 1, **resources},
    )
    found = run_search(file, console=Console(quiet=True))
    first, repeated, failed = found.run.history.records
    assert (first.outcome, repeated.outcome, failed.outcome) == ("finished", "finished", "failed")
    assert failed.step == 3
    assert [*map(untimed, repeated.curve)] == [*map(untimed, first.curve)]
    # Once each.
    assert sum("is repeated from its newest checkpoint" in m for m in caplog.messages) == 2


@pytest.mark.nightly
def test_a_collective_operation_that_hangs_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.ray_trainer.COLLECTIVE_TIMEOUT_S", 5)

    def loop(values):
        if ray.train.get_context().get_world_rank() == 1:
            threading.Event().wait()
        dist.all_reduce(torch.tensor([1.0]))

    trainer = torch_trainer(loop, {}, name="hangs", scratch=tmp_path, workers=2)
    with ThreadPoolExecutor() as elsewhere:  # in the main thread, it would handle signals
        assert elsewhere.submit(trainer.fit).exception() is not None
