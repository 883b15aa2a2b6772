"""Real searches on a real local Ray, small. Slow: a trial takes ten seconds to start."""

import shutil
from unittest.mock import patch

import pytest
import ray
import torch
import yaml
from ray.util import placement_group_table
from rich.console import Console

from tests.conftest import CLASSES
from tests.test_public_surface import EXPECTED
from tests.tuning.agreement import disagreements
from tests.tuning.databases import with_database
from tests.tuning.execution.real_searches import configuration, outcomes
from tests.waiting import wait_until
from trainers.config import TrialConfig
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import ConfigError
from tuning.config.schema import ResourcesConfig
from tuning.config.validation import load_config
from tuning.execution.ray_session import concurrent_trials, ray_session
from tuning.execution.ray_watch import RayWatch
from tuning.execution.trial_hardware import call_where_trials_run, zero_shot_metrics
from tuning.search import run_search

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _connected(ray_head):
    """A connection to the Ray in RAY_ADDRESS, whose workers the tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_head.address)
        with ray_session() as is_own:
            assert not is_own
            yield


@pytest.fixture(scope="module")
def search(images_root, tmp_path_factory):
    """One search that has it all: a finished trial, a pruned one, one that raises, one with NaN.

    The objective is the learning rate itself, so each first point is a trial whose end is known:
    the second diverges, the third is the worse half of its rung, the fourth has no images.
    """
    folder = tmp_path_factory.mktemp("search")
    good, broken = str(images_root), folder / "broken"
    shutil.copytree(images_root, broken)
    rows = [LabelledImage(b"no image", "broken.jpg", label=i % len(CLASSES)) for i in range(48)]
    write_images(part_path(broken, "real", "train"), rows, CLASSES)
    points = [
        {"optim.lr": 1e-3, "data.root": good},
        {"optim.lr": 1e3, "data.root": good},
        {"optim.lr": 1e-8, "data.root": good},
        {"optim.lr": 1e-3, "data.root": str(broken)},
        {"optim.lr": 2e-3, "data.root": good},
    ]
    space = {
        "name": None,
        "parameters": {
            "optim.lr": {"type": "float", "low": 1e-8, "high": 1e3, "log": True},
            "data.root": {"type": "categorical", "choices": [good, str(broken)]},
        },
        "initial_points": points,
    }
    values = configuration(images_root, with_database(folder / "runs"))
    values["search"] |= {"space": space, "resources": {"max_concurrent": 1}}
    values["trial"] |= {"steps": 24, "eval": {"every": 12, "line": "off"}}
    values["search"]["scheduler"]["grace_steps"] = 12
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    with patch("tuning.algorithms.studies.LEAST_FINISHED", 1):
        return run_search(load_config(path), console=Console(quiet=True))


def test_trials_finish_are_pruned_and_fail_each_by_itself(search):
    assert outcomes(search) == {
        "ft": "finished",
        "trial-000": "finished",
        "trial-001": "failed",
        "trial-002": "pruned",
        "trial-003": "failed",
        "trial-004": "finished",
    }
    assert search.outcome == "finished"


def test_a_failed_trial_says_why(search):
    errors = {record.trial_id: record.error for record in search.failed}
    assert "TrainingDiverged" in str(errors["trial-001"])
    assert "not a finite number" in str(errors["trial-001"])
    assert "broken/real/train: row" in str(errors["trial-003"])
    line, *traceback = errors["trial-003"].splitlines()
    assert "(broken.jpg): not an image" in line
    assert "in fine_tune" in "".join(traceback)


def test_study_mlflow_and_tables_agree_with_the_journal(search):
    assert disagreements(search.run.folder) == []


def test_a_run_folder_has_the_files_that_are_promised(search):
    assert sorted(path.name for path in search.run.folder.iterdir()) == EXPECTED["run_folder"]


@pytest.mark.usefixtures("search")
def test_stopped_trials_leave_no_placement_group_and_no_cpu_behind():
    def is_free():
        alive = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
        used = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
        return not alive and used < 1e-6

    wait_until(is_free, 30)


def evaluated(trial, here):
    where = {"resources": ResourcesConfig(), "call": RayWatch({}).call, "here": here}
    return call_where_trials_run(zero_shot_metrics, trial, None, **where)


@pytest.mark.parametrize("here", [False, True])
def test_a_mistake_that_an_evaluation_is_the_first_to_find_is_one_line_too(here, tmp_path):
    trial = TrialConfig.model_validate({"data": {"root": str(tmp_path)}})
    with pytest.raises(ConfigError) as caught:
        evaluated(trial, here)
    assert type(caught.value) is ConfigError
    assert str(caught.value).startswith(f"{tmp_path}: it has no domain 'real'")
    assert "\n" not in str(caught.value)


def test_this_process_evaluates_the_zero_shot_model_as_a_worker_does(trial):
    threads = torch.get_num_threads()
    in_worker, here = (evaluated(trial, here) for here in (False, True))
    assert in_worker == here
    assert torch.get_num_threads() == threads


def test_trials_at_a_time_fit_into_a_ray_of_ones_own_or_later_into_a_cluster(caplog):
    cpus = int(ray.cluster_resources()["CPU"])
    assert concurrent_trials(ResourcesConfig()) == cpus
    assert concurrent_trials(ResourcesConfig(max_concurrent=1)) == 1
    assert concurrent_trials(ResourcesConfig(max_concurrent=9), is_own_ray=True) == cpus
    assert caplog.text == ""
    assert concurrent_trials(ResourcesConfig(max_concurrent=9)) == 9
    assert f"{cpus} trial(s) fit into the cluster now" in caplog.text
    with pytest.raises(ConfigError, match=rf"{cpus + 1} worker\(s\) of 1 CPU do not fit"):
        concurrent_trials(ResourcesConfig(workers=cpus + 1))
