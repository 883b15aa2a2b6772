"""Training and evaluation on a device that is not the CPU, without a GPU.

Fake tensors on PyTorch's meta device stand for those of a GPU: operations on tensors of two devices
raise, and so does whatever needs a value of one, for which a GPU would have to be waited for. The
meta device has no autocast; 16 bits are on a fake CPU. Real GPUs: `tests/gpu`.
"""

from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from tests.trainers.curves import FIELDS
from tests.trainers.tiny_models import KINDS, random_model
from trainers.config import TrialConfig
from trainers.loop import evaluated
from trainers.loop.evaluated import Evaluated
from trainers.loop.fake_step import fake_setup
from trainers.loop.measure import classifier_of, classify, holding
from trainers.loop.training import Training
from trainers.methods.base import Loss
from trainers.methods.ft import FineTuning
from trainers.methods.registry import METHODS
from trainers.models.averaging import interpolate

NO_META = {
    "autoft": "multi_margin_loss has no backward pass on the meta device (PyTorch 2.13)",
    "r_adapter": "its scalars cannot be exchanged on the meta device (PyTorch 2.13)",
}
BATCH = 6
LABELS = torch.arange(BATCH) % 4


def moved(module, change):
    """`Module._apply`, which in PyTorch cannot exchange fake parameters."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (new := change(tensor)) is not tensor:
                    trains = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(new, tensor.requires_grad) if trains else new
    return module


@pytest.fixture(autouse=True)
def _meta_is_a_gpu(monkeypatch):
    """The meta device has neither autocast nor, by name, a fused AdamW."""
    autocast = torch.autocast
    monkeypatch.setattr(nn.Module, "_apply", moved)
    monkeypatch.setattr(parametrize, "_maybe_set", lambda to, source: None)  # the same tensor here
    monkeypatch.setattr(
        torch, "autocast", lambda *a, **k: nullcontext() if a[0] == "meta" else autocast(*a, **k)
    )
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *a, **k: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With one block an encoder."""
    towers = {key: KINDS["clip"][key] | {"layers": 1} for key in ("vision_cfg", "text_cfg")}
    return random_model(tmp_path_factory.mktemp("model"), "clip", **towers)


@contextmanager
def fake(method, model, device="meta", precision="fp32"):
    """Within the block, a training on fake tensors, and a function that takes its next step."""
    optim = {"batch_size": BATCH, "micro_batch_size": BATCH // 2, "clip_grad_norm": 1.0}
    values = {"data": {"root": "none"}, "optim": optim, "precision": precision}
    config = TrialConfig.model_validate(values)
    ema = None if method.ema is not None else 0.9
    evaluation = config.eval.model_copy(update={"ema": ema})
    config = config.model_copy(update={"model": model, "method": method, "eval": evaluation})
    with fake_setup(config, classes=4, device=device) as setup:
        training, size = Training(setup), setup.zero_shot.image_input.size

        def step():
            return training.step(torch.empty(BATCH, 3, size, size, dtype=torch.uint8), LABELS)

        yield training, step


def held(training):
    """All tensors that a training keeps from one step to the next."""
    gradients = [p.grad for p in training.student.trained.values()]
    weights = training.student.weights, training.initial, training.average, training.ema
    others = gradients, list(training.student.buffers()), list(training.optimizer.state.values())
    return [t for t in tree_leaves([*weights, *others]) if isinstance(t, torch.Tensor)]


HALF = [
    n if n in ("lipsum_ft", "flyp", *NO_META) else pytest.param(n, marks=pytest.mark.nightly)
    for n in METHODS
]
"""Methods that take steps in float16; at night, those that train on the meta device as well."""


@pytest.fixture(params=METHODS)
def method(request):
    fields = {"name": request.param, **FIELDS.get(request.param, {})}
    return TrialConfig.model_validate({"method": fields}).method


def test_it_trains_resumes_and_evaluates_on_its_device(method, model, monkeypatch):
    if method.name in NO_META:
        pytest.skip(NO_META[method.name])
    saved = []
    monkeypatch.setattr(evaluated, "save_checkpoint", lambda _, *content: saved.extend(content))
    monkeypatch.setattr(evaluated, "load_checkpoint", lambda *_: saved)
    with fake(method, model) as (training, step):
        step()
        evaluated.save(None, training, Evaluated(1, training.ema, training.ema, None, {}))
        evaluated.resume(training, None)
        found = [step(), *held(training)]
        setup, student = training.setup, training.student
        size = setup.zero_shot.image_input.size
        images = torch.empty(BATCH, 3, size, size, device="meta")
        with holding(setup, student, training.ema):
            found.append(classify(setup, student, images))
        if method.has_line:
            half = partial(interpolate, training.initial, student.weights, 0.5)
            found.append(classifier_of(setup, student, half)(images))
        # Adam counts steps in scalars.
        assert {tensor.device.type for tensor in found if tensor.dim()} == {"meta"}


@pytest.mark.parametrize("method", HALF, indirect=True)
def test_steps_in_float16_wait_for_nothing(method, model):
    with fake(method, model, device="cpu", precision="fp16") as (training, step):
        step()
        step()
        assert training.scaler.is_enabled()
        assert {p.dtype for p in training.student.trained.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda task: task * task.item(), DataDependentOutputException),
        (lambda task: task.reshape(1)[task.reshape(1) > 0].sum(), DynamicOutputShapeException),
        (lambda task: (task + torch.ones(1)).sum(), RuntimeError),
    ],
    ids=["value", "shape", "tensor of the CPU"],
)
def test_a_faulty_loss_is_found(fault, error, model):
    class Faulty(FineTuning):
        def loss(self, batch, step):
            return Loss(fault(super().loss(batch, step).task))

    with fake(Faulty(), model) as (_, step), pytest.raises(error):
        step()
