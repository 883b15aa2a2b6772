"""The fake GPU: what it refuses, what it waits for, and how its memory runs out.

What fake tensors cannot do is worked around here: `FakeGpu._stand_in` for single operations,
`without_gpu` for functions.
"""

import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map_only

import trainers
from trainers.loop import fake_step, zero_shot_features
from trainers.loop.fake_step import Operations, _Features
from trainers.loop.zero_shot_features import ZeroShotFeatures
from trainers.models.zero_shot import ZeroShotModel
from trainers.texts.random_texts import Vocabulary

aten = torch.ops.aten
GPU = torch.device("cuda", 0)

VALUES = {
    "effective_rank": "of the random texts, once a trial",
    "image_features": "zero-shot features of evaluated images, once a process",
    "ZeroShotFeatures.of_images": "as above",
    "fine_tune": "whether the loss is finite, at reports and every ten steps",
    "Clock.training": "sums of the losses, at reports",
    "Clock.cost": "CPU seconds of all workers, at reports",
    "snapshot": "the scale of float16, in a checkpoint",
    "ClassMap.score": "which evaluated images are scored",
    "DomainSums.of": "which of them are classified correctly",
    "DomainSums.reduce": "the sums of an evaluated domain",
    "Predictions.table": "the predictions on it",
}
"""Functions of the project that wait for values from the GPU, and for which."""
COPIES = {
    "state_of": "the logit scale, once a trial",
    "LowRank.__init__": "random weights, once a trial",
    "Adapter.__init__": "gains, once a trial",
    "_mean_and_std": "of pixels, once a process",
    "Stepper.step": "captions, which are tokenised on the CPU",
    "random_text_features": "random texts, where no trial has stored their features yet",
    "Clock.cost": "CPU seconds of this worker, at reports",
    "holding": "tokens of prompts, for an evaluation",
    "heads_of": "a sum that starts as 0",
    "validation_gradient": "views and labels",
    "evaluate": "their labels and zero-shot features",
    "ClassMap.columns": "columns of a domain's classes",
    "ClassMap.project": "the ID classes of a domain",
    "DomainSums.of": "the number of images",
}
"""Functions that wait until a copy to the GPU is done, and of what."""

PHASES = {
    "forward": "Stepper._student",
    "loss": ".loss",
    "backward": "backward",
    "optimizer": "Adam.step",
    "evaluation": "classify",
}
"""End of the name of a function within which memory runs out."""
PACKAGE, MODE = str(Path(trainers.__file__).parent), fake_step.__file__


class Waited(Exception):
    """A wait for the GPU that is neither in `VALUES` nor in `COPIES`."""


class FakeGpu(Operations):
    """Records the living bytes of all fake tensors in the block, and refuses waits for the GPU."""

    def __init__(self):
        super().__init__()
        self.allocations = None
        """Allocations of each phase so far; None if they are not counted."""
        self.fails = None
        """Phase and number of the allocation that fails, once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
        if func.namespace == "prim" or not is_fake:  # of devices and sizes, or on real tensors
            return func(*args, **kwargs)
        if self.allocations is not None and not func.is_view and not func._schema.is_mutable:
            self._allocate()
        stand_in = self._stand_in(func, args, kwargs)
        if stand_in is not None:
            return stand_in
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _stand_in(self, func, args, kwargs):
        """The result of an operation on values, which fake tensors do not have; None if it needs
        none."""
        first = args[0] if args else None
        if func in (aten._local_scalar_dense.default, aten.item.default):
            self._wait(first)
            if isinstance(first, FakeTensor) and first.constant is None:
                return 1
        elif func is aten.index.Tensor:
            indices = [index for index in args[1] if index is not None]
            for index in indices:
                if index.device != first.device:
                    self._wait(index, is_copy=True)
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._wait(first)
                return first.clone()  # as if all were chosen
        elif func is aten.bincount.default:
            self._wait(first)
            return first.new_empty(args[2])
        elif func in (aten.nonzero.default, aten.masked_select.default):
            self._wait(first)
        elif func in (aten._to_copy.default, aten.copy_.default):
            target, source = args[:2] if func is aten.copy_.default else (first, first)
            device = kwargs.get("device") or target.device
            is_asynchronous = kwargs.get("non_blocking", args[2:3] == (True,))
            if source.device.type != device.type and not is_asynchronous:
                self._wait(source, is_copy=True)
        elif func is aten._pin_memory.default:
            assert first.device.type == "cpu"
            return first.clone()
        elif func is aten.multi_margin_loss_backward.default:  # AutoFT's; has no meta kernel
            return torch.empty_like(args[1])
        return None

    def _wait(self, source, is_copy=False):
        """Refuse a wait for a value of the GPU, or for a copy to it, that is not listed."""
        if source.device.type == "cuda" or is_copy:
            own = (name for file, name in _callers() if file.startswith(PACKAGE) and file != MODE)
            function = next(own, "a backward pass").partition(".<locals>")[0]
            if function not in (VALUES if source.device.type == "cuda" else COPIES):
                raise Waited(f"{function}, which is not listed for this in {__name__}")

    def _allocate(self):
        names = [name for _, name in _callers()]
        if threading.current_thread() is not threading.main_thread():
            names = ["backward"]
        for phase, end in PHASES.items():
            if any(name.endswith(end) for name in names):
                self.allocations[phase] += 1
                if self.fails == (phase, self.allocations[phase]):
                    self.fails = None
                    raise torch.OutOfMemoryError(f"no memory in {phase}")


def _callers():
    """File and qualified name of all functions that called, the innermost first."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_qualname
        frame = frame.f_back


def real(function):
    """The function, which computes with real tensors of the CPU."""

    def call(*arguments, **options):
        with unset_fake_temporarily():
            return function(*arguments, **options)

    return call


def materialised(values):
    """The values with real tensors of zeros on the CPU."""
    return tree_map_only(Tensor, lambda t: real(torch.zeros)(t.shape, dtype=t.dtype), values)


def moved(module, change):
    """`Module._apply`, which in PyTorch cannot exchange fake parameters."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (new := change(tensor)) is not tensor:
                    trains = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(new, tensor.requires_grad) if trains else new
    return module


@contextmanager
def without_gpu():
    """Within the block, PyTorch does not look for a GPU, and fake tensors are loaded."""
    load, load_file = torch.load, safetensors.torch.load_file

    def loaded(values, device):
        return tree_map_only(Tensor, lambda t: torch.empty_like(t, device=device), values)

    longest = Vocabulary.longest.func
    replaced = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.cuda, "get_device_name", lambda *_: "fake"),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "reset_peak_memory_stats", lambda *_: None),
        (torch.cuda, "max_memory_allocated", lambda *_: 0),
        (torch.cuda, "utilization", lambda *_: 0),
        (nn.Module, "_apply", moved),
        (parametrize, "_maybe_set", lambda to, source: None),  # the same tensor here
        (FakeTensor, "numpy", lambda t: np.zeros(t.shape, str(t.dtype).removeprefix("torch."))),
        # In PyTorch, fake tensors are loaded without `map_location`.
        (torch, "load", lambda file, map_location="cpu", **options: loaded(
            real(load)(file, **options), map_location)),
        (safetensors.torch, "load_file", lambda file, device="cpu": loaded(
            real(load_file)(file), device)),
        # Tokens are real, since their number depends on their values.
        (ZeroShotModel, "shortened", real(ZeroShotModel.shortened)),
        (zero_shot_features, "random_texts", real(zero_shot_features.random_texts)),
        (_Features, "of_random_texts", ZeroShotFeatures.of_random_texts),
        (Vocabulary, "longest", property(real(longest))),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, new in replaced:
            stack.enter_context(patch.object(owner, name, new))
        yield
