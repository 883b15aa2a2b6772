"""OOD domains evaluated as tasks: real searches on a Ray of four CPUs, slow, for a trial takes ten
seconds to start; and without Ray, what becomes of reports that wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray.exceptions import RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray.util.state import list_tasks
from rich.console import Console

from tests.benchmarks.kills import disagreements
from tests.tuning.test_search import configuration, left_behind, outcomes
from trainers.checkpoint import WEIGHTS
from trainers.config import DataConfig
from trainers.data.storage import Store, open_store
from trainers.domain_sums import MEASURES
from trainers.errors import StorageFailed, storage_failures
from trainers.fine_tune import fine_tune
from trainers.pending import PENDING, REPORT, Evaluated, leave_pending
from trainers.torch_trainer import PENDING_KEY, WORKER_ENVIRONMENT
from tuning.config_file import load_config
from tuning.evaluation_tasks import SPENT, EvaluationFailed, Reports
from tuning.journal import JOURNAL_FILE
from tuning.ray_session import LOCALHOST, free_port, patiently
from tuning.search import SearchResult, run_search

slow = pytest.mark.slow

OOD = ("painting", "clipart", "infograph", "sketch")
DATA = DataConfig(id_domain="real", ood_domains=OOD)


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Of a Ray that takes this machine for one of four CPUs: three are left by a trial of one."""
    port = free_port()
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    address = f"{LOCALHOST}:{port}"
    context = patiently(
        lambda: ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=True,
            dashboard_host=LOCALHOST,
            _node_ip_address=LOCALHOST,
            log_to_driver=False,
            runtime_env={"env_vars": {**WORKER_ENVIRONMENT, "RAY_ADDRESS": address}},
        )
    )
    del os.environ["RAY_GCS_SERVER_PORT"]
    yield f"http://{context.dashboard_url}"
    ray.shutdown()


def write(root: Path, storage: Path, name: str, workers: int = 1, **search: object) -> Path:
    """A configuration of one trial after the other that evaluates by tasks."""
    values = configuration(root, storage)
    resources = {"workers": workers, "max_concurrent": 1, "ood_evaluation": "tasks"}
    values["search"] |= {"name": name, "references": [], "resources": resources, **search}
    path = storage / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def points(*rates: float) -> dict[str, Any]:
    lr = {"type": "float", "low": 1e-8, "high": 1.0, "log": True}
    first = [{"optim.lr": rate} for rate in rates]
    return {"name": None, "parameters": {"optim.lr": lr}, "initial_points": first}


def figures(report: Mapping[str, float]) -> dict[str, float]:
    """All but what it cost, how fast, and in what parts."""
    other = ("cost/", "train/images", "train/micro_batch_size")
    return {n: v for n, v in report.items() if not n.startswith(other)}


def inline(file: Any, params: Mapping[str, Any]) -> list[dict[str, float]]:
    """What a trial reports that evaluates everything itself, in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker of one CPU has
    try:
        reports = fine_tune(file.trial_config(params))
        return [{"step": r.step, **r.metrics} for r in reports]
    finally:
        torch.set_num_threads(threads)


def evaluations(dashboard: str) -> list[Any]:
    """The evaluation tasks that this Ray knows of."""
    tasks = list_tasks(dashboard, detail=True, limit=10_000, raise_on_missing_output=False)
    return [task for task in tasks if task.name.startswith("evaluate ")]


@pytest.fixture(scope="module")
def search(
    dashboard: str, pictures_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SearchResult, list[Any]]:
    """Two trials of two workers, of which the second is the worse at its first rung; their tasks"""
    storage, space = tmp_path_factory.mktemp("tasks"), points(1e-3, 1e-8)
    config = write(pictures_root, storage, "tasks", workers=2, space=space, budget={"trials": 2})
    result = run_search(load_config(config), console=Console(quiet=True))
    return result, evaluations(dashboard)


@slow
def test_reports_of_tasks_are_those_of_workers_complete_and_in_order(
    search: tuple[SearchResult, list[Any]],
) -> None:
    result, tasks = search
    assert outcomes(result) == {"trial-000": "finished", "trial-001": "pruned"}
    file = load_config(result.run_folder / "search.yaml")
    for record in result.records:
        expected = inline(file, record.params)[: len(record.curve)]
        assert [report.keys() for report in record.curve] == [r.keys() for r in expected]
        for report, alone in zip(record.curve, expected, strict=True):
            assert figures(report) == pytest.approx(figures(alone), rel=1e-3, abs=1e-3)
    assert [report["step"] for report in result.records[0].curve] == [3, 6, 9]
    finished = {task.name for task in tasks if task.state == "FINISHED"}
    assert {f"evaluate {domain} at step 3" for domain in OOD} <= finished


@slow
def test_tasks_run_beside_the_trial_and_what_they_took_is_in_its_costs(
    search: tuple[SearchResult, list[Any]],
) -> None:
    result, tasks = search
    processes = {task.worker_pid for task in tasks if task.state == "FINISHED"}
    assert len(processes) > 1  # several at a time
    pending = result.run_folder / "train" / "train-trial-000" / PENDING
    assert [path.name for path in pending.iterdir()] == [SPENT]  # nothing is left
    spent = json.loads((pending / SPENT).read_text())
    last = result.records[0].metrics
    assert 0 < spent["cpu_seconds"] < last["cost/cpu_seconds"]
    assert spent["gpu_seconds"] == last["cost/gpu_seconds"] == 0


@slow
def test_a_trial_that_is_stopped_takes_its_tasks_with_it(
    search: tuple[SearchResult, list[Any]],
) -> None:
    result, _ = search
    assert [report["step"] for report in result.records[1].curve] == [3]
    assert left_behind() == ([], pytest.approx(0, abs=1e-6))
    assert not (result.run_folder / "train" / "train-trial-001").exists()


@slow
def test_where_no_node_has_room_the_workers_evaluate_everything(
    dashboard: str, pictures_root: Path, tmp_path: Path
) -> None:
    before = len(evaluations(dashboard))
    taken = placement_group([{"CPU": 3}])
    ray.get(taken.ready())
    try:
        config = write(pictures_root, tmp_path, "full", space=points(1e-3), budget={"trials": 1})
        result = run_search(load_config(config), console=Console(quiet=True))
    finally:
        remove_placement_group(taken)
    (record,) = result.records
    file = load_config(config)
    expected = [figures(report) for report in inline(file, record.params)]
    assert [figures(report) for report in record.curve] == expected
    assert len(evaluations(dashboard)) == before


@slow
def test_a_killed_search_loses_no_report_that_waited_for_tasks(
    pictures_root: Path, tmp_path: Path
) -> None:
    config = write(pictures_root, tmp_path, "killed", space=points(1e-3), budget={"trials": 1})
    folder = tmp_path / "killed"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tuning", "search", str(config)], stdout=subprocess.DEVNULL
    )
    pending = folder / "train" / "train-trial-000" / PENDING
    while not list(pending.glob(f"*/{REPORT}")):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    waited = sorted(json.loads(p.read_text())["step"] for p in pending.glob(f"*/{REPORT}"))
    told = len(steps(folder))
    assert waited
    assert told < 3

    resumed = subprocess.run(
        [sys.executable, "-m", "tuning", "resume", str(folder)], stdout=subprocess.DEVNULL
    )
    assert resumed.returncode == 0
    assert disagreements(folder) == []
    assert steps(folder)[told] == waited[0]  # what waited came first
    assert steps(folder)[told:] == sorted(set(steps(folder)[told:]))  # and nothing twice
    curve = [figures(event["report"]) for event in journal(folder) if event["event"] == "report"]
    file = load_config(config)
    expected = {report["step"]: figures(report) for report in inline(file, {"optim.lr": 1e-3})}
    assert {report["step"]: report for report in curve} == expected
    assert [path.name for path in pending.iterdir()] == [SPENT]


def journal(folder: Path) -> list[dict[str, Any]]:
    whole = (folder / JOURNAL_FILE).read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def steps(folder: Path) -> list[int]:
    return [int(e["report"]["step"]) for e in journal(folder) if e["event"] == "report"]


def told_what_to_do() -> Any:
    """A task in place of an evaluation: waits for a file, raises, or dies, where it is told to."""

    # Within a function, so that its processes need not import this module with all it imports.
    def measured(config: Mapping[str, Any], url: str, domain: str, temperature: float) -> Evaluated:
        folder = Path(config["folder"])
        while config.get("wait") and not (folder / "go").exists():
            time.sleep(0.05)
        if domain == config.get("fails"):
            raise ValueError(f"{domain} cannot be read")
        if domain == config.get("dies") and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        return Evaluated(dict.fromkeys(MEASURES, float(len(domain))), 2.0, 0.5)

    return ray.remote(num_cpus=1, max_retries=1)(measured)


METRICS = {f"id_val/{name}": 1.0 for name in (*MEASURES, "temperature")} | {"cost/cpu_seconds": 9.0}


class Trial:
    """A trial's reports, with what a worker does to them and what Tune is told."""

    def __init__(self, folder: Path, task: Any = None, **config: object) -> None:
        self.checkpoint = folder / "checkpoint"
        self.checkpoint.mkdir(exist_ok=True)
        (self.checkpoint / WEIGHTS).touch()
        self.store: Store = open_store(folder / PENDING)
        self.sent: list[dict[str, float]] = []
        config = {"folder": str(folder), **config}
        self.reports = Reports(config, self.store, task or told_what_to_do(), self.sent.append)

    def leave(self, step: int) -> str:
        return leave_pending(self.store, self.checkpoint, step, METRICS, DATA).name

    def reports_without_ood(self, step: int) -> None:
        self.reports.take({"step": step, **METRICS, PENDING_KEY: self.leave(step)})

    def reports_whole(self, step: int) -> None:
        self.reports.take({"step": step, **METRICS})

    def send_all(self) -> list[int]:
        while not self.reports.all_sent:
            self.reports.send_complete()
            time.sleep(0.05)
        return [int(report["step"]) for report in self.sent]

    @property
    def folders(self) -> list[str]:
        return [i.base_name for i in self.store.list() if i.base_name.startswith("step-")]


@slow
def test_a_report_that_waits_for_tasks_holds_up_the_next_and_nothing_is_sent_twice(
    dashboard: str, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, wait=True)
    trial.reports_whole(3)
    trial.reports_without_ood(6)
    trial.reports_whole(9)
    trial.reports.send_complete()
    assert [report["step"] for report in trial.sent] == [3]
    trial.reports_whole(6)  # a worker died, and goes on from the checkpoint of step 6
    trial.reports_without_ood(9)
    (tmp_path / "go").touch()
    assert trial.send_all() == [3, 6, 9]
    assert trial.folders == []
    assert trial.sent[1]["ood_val/sketch/acc"] == 6.0
    assert trial.sent[1]["ood_val/mean_acc"] == (8 + 7 + 9 + 6) / 4
    assert [report["cost/cpu_seconds"] for report in trial.sent] == [9.0, 17.0, 17.0]


@slow
def test_what_an_earlier_driver_left_is_reported_first_and_costs_add_up(
    dashboard: str, tmp_path: Path
) -> None:
    first = Trial(tmp_path)
    first.reports_without_ood(3)
    assert first.send_all() == [3]
    for step in (9, 6):
        first.leave(step)
    again = Trial(tmp_path)
    again.reports_whole(9)  # repeated by a worker that goes on from there
    again.reports_without_ood(12)
    assert again.send_all() == [6, 9, 12]
    assert again.sent[0].keys() == again.sent[2].keys()
    assert [r["cost/cpu_seconds"] for r in again.sent] == [9.0 + 8 * n for n in (2, 3, 4)]
    assert again.folders == []


@slow
def test_a_task_that_fails_fails_the_trial_and_one_whose_process_dies_is_tried_again(
    dashboard: str, tmp_path: Path
) -> None:
    (tmp_path / "lost").mkdir()
    dies = Trial(tmp_path / "lost", dies="clipart")
    dies.reports_without_ood(3)
    assert dies.send_all() == [3]
    fails = Trial(tmp_path, fails="clipart")
    fails.reports_without_ood(3)
    said = "evaluation of clipart: ValueError: clipart cannot be read"
    with pytest.raises(EvaluationFailed, match=f"^{said}$"):
        fails.send_all()
    assert fails.sent == []
    assert len(fails.folders) == 1  # a resume finds it


@slow
def test_tasks_that_nobody_waits_for_any_more_give_their_cpus_back(
    dashboard: str, tmp_path: Path
) -> None:
    """Tune removes the placement group of a driver that ends, in whatever way."""
    group = placement_group([{"memory": 1 << 20}])
    driver = (
        ray.remote(Driver)
        .options(num_cpus=0, memory=1 << 20, scheduling_strategy=in_group(group))
        .remote(tmp_path)
    )
    ray.get(driver.waits_for.remote([3, 6]))  # eight tasks: four have to wait for a CPU
    while ray.available_resources().get("CPU", 0) > 0:
        time.sleep(0.1)
    remove_placement_group(group)
    assert left_behind() == ([], pytest.approx(0, abs=1e-6))
    time.sleep(2)
    assert left_behind(0)[1] == pytest.approx(0, abs=1e-6)  # nor have others begun


def in_group(group: Any) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)


class Driver:
    """The driver of a trial whose tasks do not end by themselves."""

    def __init__(self, folder: Path) -> None:
        self._trial = Trial(folder, wait=True)

    def waits_for(self, steps: Sequence[int]) -> None:
        for step in steps:
            self._trial.reports_without_ood(step)


@dataclass
class Tasks:
    """In place of Ray and its tasks."""

    running: set[int] = field(default_factory=set)
    """Steps whose tasks have not ended."""
    raises: Exception | None = None

    def options(self, **options: object) -> Tasks:
        return self

    def remote(self, config: object, url: str, domain: str, temperature: float) -> tuple[str, str]:
        return url.rpartition("/")[2], domain

    def wait(
        self, tasks: Sequence[tuple[str, str]], **options: object
    ) -> tuple[list[object], list[object]]:
        running = [(name, domain) for name, domain in tasks if int(name[5:13]) in self.running]
        return [task for task in tasks if task not in running], [*running]

    def get(self, task: tuple[str, str]) -> Evaluated:
        if self.raises is not None:
            about = {"proctitle": "ray", "pid": 1, "ip": "127.0.0.1"}
            raise RayTaskError("f", "Traceback", self.raises, **about).as_instanceof_cause()
        return Evaluated(dict.fromkeys(MEASURES, float(len(task[1]))), 2.0, 0.5)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    tasks = Tasks()
    monkeypatch.setattr(ray, "wait", tasks.wait)
    monkeypatch.setattr(ray, "get", tasks.get)
    return tasks


def test_a_driver_that_is_killed_while_whole_reports_wait_loses_none_of_them(
    tasks: Tasks, tmp_path: Path
) -> None:
    killed = Trial(tmp_path, tasks)
    tasks.running = {100}
    killed.reports_without_ood(100)
    killed.reports_whole(200)
    killed.reports_without_ood(300)
    killed.reports_whole(400)
    killed.reports.send_complete()
    assert killed.sent == []

    tasks.running = set()
    resumed = Trial(tmp_path, tasks)
    resumed.reports_whole(400)  # a worker repeats its last report, and no other
    resumed.reports_without_ood(500)
    assert resumed.send_all() == [100, 200, 300, 400, 500]
    assert [r["cost/cpu_seconds"] for r in resumed.sent] == [9.0 + 8 * n for n in (1, 1, 2, 2, 3)]
    without_costs = {n: v for n, v in resumed.sent[1].items() if not n.startswith("cost/")}
    assert without_costs == {"step": 200} | {n: v for n, v in METRICS.items() if n[:5] != "cost/"}
    assert resumed.folders == []


def test_a_whole_report_that_waits_for_none_is_sent_and_nothing_is_written(
    tasks: Tasks, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, tasks)
    for step in (100, 200):
        trial.reports_whole(step)
        assert trial.folders == []
        assert trial.send_all()[-1] == step
    assert not (tmp_path / PENDING).exists()


def test_reports_are_sent_in_the_order_of_steps_in_whatever_order_they_come(
    tasks: Tasks, tmp_path: Path
) -> None:
    first = Trial(tmp_path, tasks)
    for step in (100, 300):
        first.leave(step)
    tasks.running = {100, 300}
    trial = Trial(tmp_path, tasks)
    trial.reports_whole(200)
    trial.reports_without_ood(300)
    tasks.running = {300}
    trial.reports.send_complete()
    assert [report["step"] for report in trial.sent] == [100, 200]
    trial.reports_whole(100)
    trial.reports_whole(200)
    trial.reports_without_ood(150)  # would end the curve there
    tasks.running = set()
    assert trial.send_all() == [100, 200, 300]
    assert trial.folders == []


def test_what_a_lost_worker_could_not_tell_of_goes_when_the_next_one_comes_to_that_step(
    tasks: Tasks, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, tasks)
    trial.reports_without_ood(100)
    trial.leave(200)  # then it was lost, and so the next time, half way
    half = trial.leave(200)
    (tmp_path / PENDING / half / REPORT).unlink()
    further = trial.leave(300)
    tasks.running = {100, 200}
    trial.reports_without_ood(200)
    assert [name[:13] for name in trial.folders] == ["step-00000100", "step-00000200", further[:13]]
    tasks.running = set()
    assert trial.send_all() == [100, 200]
    assert trial.folders == [further]
    assert Trial(tmp_path, tasks).send_all() == [300]


def test_a_task_that_cannot_read_its_pictures_fails_the_trial_and_is_no_failure_of_storage(
    tasks: Tasks, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, tasks)
    trial.reports_without_ood(100)
    tasks.raises = PermissionError(13, "Permission denied", "/data/painting")
    with (
        pytest.raises(EvaluationFailed, match="of painting: PermissionError: "),
        storage_failures("s3://checkpoints", "cannot be used"),
    ):
        trial.send_all()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (StorageFailed("s3://mine: its weights cannot be copied here"), "^s3://mine: its weights"),
        (OSError(28, "No space left on device", "/tmp/weights"), "^/tmp/weights: No space left"),
    ],
)
def test_a_task_whose_storage_fails_says_so(
    tasks: Tasks, tmp_path: Path, raised: Exception, said: str
) -> None:
    trial = Trial(tmp_path, tasks)
    trial.reports_without_ood(100)
    tasks.raises = raised
    with pytest.raises(StorageFailed, match=said):
        trial.send_all()
