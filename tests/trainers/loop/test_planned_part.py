"""`micro_batch_size: auto`: the images at once that a prediction fits into the memory of a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import CLASSES
from tests.trainers.curves import PARTS, changed, curve, short
from tests.trainers.loop.short_memory import limit_images
from trainers import fine_tune as loop
from trainers.loop.fake_step import FILLED, planned_part, step_cost
from trainers.loop.state import start
from trainers.methods.base import Loss
from trainers.methods.ft import FineTuning

BATCH = 64


@pytest.fixture
def auto(trial):
    return short(trial, "ft", optim__micro_batch_size="auto", optim__batch_size=BATCH)


@pytest.fixture
def on_gpu(monkeypatch):
    """The state of a run on a GPU, of which a prediction knows no more than its memory."""

    def run_on(config, memory, share=1.0):
        properties = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
        return replace(start(config), device=torch.device("cuda"))

    return run_on


def peak_bytes(config, at_once=BATCH):
    config = changed(config, optim__micro_batch_size=at_once)
    return step_cost(config, classes=len(CLASSES)).peak_bytes


def test_images_are_halved_until_the_prediction_fits(auto, on_gpu):
    whole, half = peak_bytes(auto), peak_bytes(auto, BATCH // 2)
    assert half < whole
    assert planned_part(on_gpu(auto, memory=1.001 * whole / FILLED)) == BATCH
    between = (half + whole) / 2 / FILLED
    assert planned_part(on_gpu(auto, memory=between)) == BATCH // 2
    assert planned_part(on_gpu(auto, memory=2 * between, share=0.5)) == BATCH // 2


def test_factors_are_no_reason_to_predict_again(auto, on_gpu, monkeypatch):
    planned_part(on_gpu(auto, memory=1e9))
    predicted = []
    small = SimpleNamespace(peak_bytes=0)
    again = lambda config, **_: predicted.append(config.method.name) or small  # noqa: E731
    monkeypatch.setattr("trainers.loop.fake_step.step_cost", again)
    planned_part(on_gpu(changed(auto, optim__lr=0.5, seed=7), memory=1e9))
    assert predicted == []
    planned_part(on_gpu(changed(auto, method={"name": "kd"}), memory=1e9))
    assert predicted == ["kd"]


def test_a_step_that_cannot_be_predicted_takes_all_images(auto, on_gpu, monkeypatch, caplog):
    def loss(method, batch, step):
        return Loss(batch.student.features.sum() * batch.student.features.sum().item())

    monkeypatch.setattr(FineTuning, "loss", loss)
    assert planned_part(on_gpu(auto, memory=1)) == BATCH
    assert "no prediction" in caplog.text


def test_a_prediction_exchanges_nothing_with_other_workers(auto, two_workers):
    assert two_workers(peak_bytes, auto) == [peak_bytes(auto)] * 2


def test_without_a_gpu_all_images_go_at_once_until_memory_is_exhausted(auto, monkeypatch):
    auto = changed(auto, optim__batch_size=8)
    assert curve(auto) == curve(changed(auto, optim__micro_batch_size=None))
    monkeypatch.setattr(loop, "start", limit_images(3, "student"))
    (report,) = curve(auto)
    assert report[PARTS] == 2
