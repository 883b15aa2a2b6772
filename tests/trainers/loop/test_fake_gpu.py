"""Steps on a device that is not the CPU, without a GPU.

Fake tensors on PyTorch's meta device stand for those of a GPU: operations on tensors of two devices
raise, and so does whatever needs a value of one, for which a GPU would have to be waited for. Whole
runs, in the types of a GPU, are in `fake_cuda`.
"""

from contextlib import nullcontext
from importlib import import_module

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from tests.trainers.loop.fake_cuda.device import moved
from trainers.config import TrialConfig
from trainers.loop.fake_step import fake_run
from trainers.loop.step import Stepper
from trainers.methods.base import Loss
from trainers.methods.ft import FineTuning
from trainers.models.averaging import update_average

BATCH = 6
LABELS = torch.arange(BATCH) % 4


@pytest.fixture
def take_steps(monkeypatch):
    """Takes two steps of a method on the fake device, in two parts each."""
    autocast = torch.autocast
    monkeypatch.setattr(nn.Module, "_apply", moved)
    # The meta device has neither autocast nor, by name, a fused AdamW.
    monkeypatch.setattr(
        torch, "autocast", lambda *a, **k: nullcontext() if a[0] == "meta" else autocast(*a, **k)
    )
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *a, **k: None)

    def take(method):
        optim = {"batch_size": BATCH, "micro_batch_size": BATCH // 2, "clip_grad_norm": 1.0}
        values = {"data": {"root": "none"}, "optim": optim, "eval": {"ema": 0.9}}
        config = TrialConfig.model_validate(values)
        config = config.model_copy(update={"method": method})
        with fake_run(config, classes=4, device="meta") as (run, _):
            stepper, size = Stepper(run), run.zero_shot.image_input.size
            for number in range(2):
                views = torch.empty(BATCH, 3, size, size, dtype=torch.uint8)
                values = stepper.step(number, views, LABELS, lr=1e-4)
                update_average(run.ema, run.weights, run.ema_decay)
            trained = run.student.trained.values()
            tensors = [values, *trained, *(p.grad for p in trained), *run.ema.values()]
            assert {tensor.device.type for tensor in tensors} == {"meta"}

    return take


@pytest.mark.parametrize("name", ["ft", "lipsum_ft", "flyp"])
def test_a_step_stays_on_its_device_and_waits_for_nothing(name, take_steps):
    take_steps(TrialConfig.model_validate({"method": {"name": name}}).method)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda task: task * task.item(), DataDependentOutputException),
        (lambda task: task if task > 0 else -task, DataDependentOutputException),
        (lambda task: task * sum(task.reshape(1).tolist()), DataDependentOutputException),
        (lambda task: task.reshape(1)[task.reshape(1) > 0].sum(), DynamicOutputShapeException),
        (lambda task: (task + torch.ones(1)).sum(), RuntimeError),
    ],
    ids=["item", "bool", "tolist", "mask", "tensor of the CPU"],
)
def test_a_faulty_loss_is_found(fault, error, take_steps):
    class Faulty(FineTuning):
        def loss(self, batch, step):
            return Loss(fault(super().loss(batch, step).task))

    with pytest.raises(error):
        take_steps(Faulty())


def test_a_buffer_that_stays_on_the_cpu_is_found(take_steps, monkeypatch):
    def parameters_only(module, change):
        return moved(module, lambda t: change(t) if isinstance(t, nn.Parameter) else t)

    monkeypatch.setattr(nn.Module, "_apply", parameters_only)

    students = []

    class Faulty(FineTuning):
        def prepare(self, student):
            super().prepare(student)
            student.register_buffer("texts", torch.empty(4, student.head.shape[1]))
            students.append(student)

        def loss(self, batch, step):
            return Loss((batch.student.features @ students[0].texts.T).sum())

    with pytest.raises(RuntimeError, match="cpu"):
        take_steps(Faulty())
