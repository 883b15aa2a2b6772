"""A training step on fake tensors: its operations, memory traffic and peak memory, without a GPU.

`lipsum-tune plan --on` prices a search by it.

Fake tensors (`FakeTensorMode`) have shapes and types, and nothing is computed. The step is the
training loop's own (`Training`), so methods, precision and micro-batches cost what they do there.
The tensors are on a fake CPU, which every build of PyTorch has. Its attention is a flash kernel
that keeps what that of a GPU keeps; its autocast is made that of a GPU.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from trainers.config import TrialConfig
from trainers.data import transforms
from trainers.loop.measure import classify
from trainers.loop.setup import Setup
from trainers.loop.training import Training
from trainers.loop.zero_shot_features import ZeroShotFeatures
from trainers.models.clip import load_tokenizer, skeleton
from trainers.models.image import image_input, pooled_features
from trainers.models.zero_shot import ZeroShotModel
from trainers.texts import Prompts

FILLED = 0.9
"""Share of a GPU's memory that tensors may take, beside CUDA itself and gaps between tensors."""

_aten = torch.ops.aten
FLOPS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
"""Operations of matrix products, convolutions and attention, by PyTorch's formulas."""

_NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::detach", "prim::")
"""Beginnings of the names of operators that move no memory, besides views."""


class Operation(NamedTuple):
    """A kernel: what it computes in which type, and the bytes that it reads and writes."""

    flops: int
    dtype: torch.dtype
    moved: int
    shared: bool
    """Whether only the first trial needs it, whose zero-shot features the others read."""


class Operations(TorchDispatchMode):
    """Records the operations in the block, and the bytes of all tensors that live there."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.live = self.peak = 0
        self.shared = False
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._track(tensor.untyped_storage())
        schema = func._schema
        if func.is_view or schema.name.startswith(_NO_KERNEL):
            return out
        if outputs or schema.is_mutable:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            tensors = {id(tensor): tensor for tensor in (*outputs, *inputs)}
            moved = sum(map(_nbytes, tensors.values()))
            if not outputs:  # such as AdamW's update, which reads and writes all of them
                moved *= 2
            formula = FLOPS.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=out) if formula else 0
            dtype = next(iter(tensors.values())).dtype
            self.operations.append(Operation(flops, dtype, moved, self.shared))
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, nbytes: int) -> None:
        self.live -= nbytes


def _nbytes(tensor: Tensor) -> int:
    """Bytes that a kernel touches: those of an expanded tensor lie in memory once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class _GpuAutocast(TorchFunctionMode):
    """Autocast of GPUs normalises layers in float32, that of CPUs does not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class StepCost:
    """What a step needs on one worker."""

    peak_bytes: int
    """Most bytes of tensors at a time, in the second step: AdamW's moments are there."""
    micro_batches: float
    """Of the batch; the last one may be a share of one."""
    of_micro_batches: Sequence[Operation]
    """Forward and backward passes of the recorded micro-batches, at most two."""
    recorded: int
    of_optimizer: Sequence[Operation]
    """After the backward passes."""
    width: int
    """Of a feature vector, D."""


def step_cost(config: TrialConfig, *, classes: int) -> StepCost:
    """Take two steps of a configuration on fake tensors.

    The batch of the configuration is that of one worker; one of more than two micro-batches is
    recorded as two of them. `auto` as precision is float32.
    """
    batch = config.optim.batch_size
    micro_batch = config.optim.micro_batch_of(batch)
    taken = min(batch, 2 * micro_batch)
    optim = config.optim.model_copy(update={"batch_size": taken})
    with fake_setup(config.model_copy(update={"optim": optim}), classes) as setup:
        training, recorder = Training(setup), setup.recorder
        marks = list[int]()
        training.optimizer.register_step_pre_hook(lambda *_: marks.append(len(recorder.operations)))
        size = setup.zero_shot.image_input.size
        others = torch.empty(batch - taken, 3, size, size, dtype=torch.uint8)  # stays on the GPU
        for _ in range(2):
            recorder.peak = recorder.live
            recorder.operations.clear()
            views = torch.empty(taken, 3, size, size, dtype=torch.uint8)
            with unset_fake_temporarily():
                labels = torch.arange(taken) % classes
            training.step(views, labels)
        del others
        done = recorder.operations
        return StepCost(
            peak_bytes=recorder.peak,
            micro_batches=batch / micro_batch,
            of_micro_batches=done[: marks[1]],
            recorded=math.ceil(taken / micro_batch),
            of_optimizer=done[marks[1] :],
            width=training.student.head.shape[1],
        )


def fitting_micro_batch(
    cost: Callable[[int], StepCost], size: int, memory_bytes: float
) -> tuple[int, StepCost | None]:
    """The size of a micro-batch, halved until a step fits into the memory of a GPU, and what the
    step costs; None if single images do not fit.

    `cost` is that of a step with micro-batches of a size.
    """
    while (step := cost(size)).peak_bytes > FILLED * memory_bytes:
        if size == 1:
            return 1, None
        size = (size + 1) // 2
    return size, step


def evaluation_cost(
    config: TrialConfig, *, classes: int
) -> tuple[list[Operation], list[Operation]]:
    """The operations of an evaluated batch, and of as many texts of a head that is made again; none
    if the text encoder does not train."""
    with fake_setup(config, classes) as setup:
        student, operations = setup.student(), setup.recorder.operations
        size = setup.zero_shot.image_input.size
        images = torch.empty(config.eval.batch_size, 3, size, size)
        operations.clear()
        classify(setup, student, images)
        of_images = list(operations)
        texts = list[Operation]()
        if student.text is not None:
            tokens = setup.zero_shot.tokenize(setup.zero_shot.prompts.of("class 10")[:1])
            operations.clear()
            with torch.no_grad():
                student(None, tokens.repeat(config.eval.batch_size, 1)[None])
            texts = list(operations)
        return of_images, texts


@dataclass(frozen=True, eq=False)
class FakeSetup(Setup):
    """A setup of fake tensors, whose operations are recorded."""

    recorder: Operations

    @cached_property
    def zero_shot_features(self) -> ZeroShotFeatures:
        """Those of the fake model."""
        features = _Features(self.config, self.zero_shot, self.precision, self.batches)
        features.recorder = self.recorder
        return features


@contextmanager
def fake_setup(
    config: TrialConfig, classes: int, device: torch.device | str = "cpu"
) -> Iterator[FakeSetup]:
    """Within the block, a setup of fake tensors, which reads neither weights nor images."""
    without = {"zero_shot_cache_gb": 0.0, "compile": False, "class_weights": None}
    config = config.model_copy(update=without)
    clip, tokenizer = skeleton(config.model).eval(), load_tokenizer(config.model)
    names = tuple(f"class {number}" for number in range(classes))
    prompts = Prompts(names, config.data.rules.all_templates)
    where = torch.device(device)
    transforms._mean_and_std.cache_clear()  # neither real tensors in the block nor fake ones after
    try:
        with (
            warnings.catch_warnings(action="ignore", category=UserWarning),  # of copied tensors
            _Mode(allow_non_fake_inputs=True),
            _GpuAutocast(),
            Operations() as recorder,
        ):
            zero_shot = _fake_model(clip, tokenizer, prompts, where)
            yield FakeSetup(config, zero_shot, names, where, recorder)
    finally:
        transforms._mean_and_std.cache_clear()


def _fake_model(
    clip: nn.Module, tokenizer: Any, prompts: Prompts, where: torch.device
) -> _ZeroShot:
    """A zero-shot model on the meta device as one of fake tensors, with a head of any values."""
    visual = cast(nn.Module, clip.visual)
    trainable = frozenset(name for name, p in visual.named_parameters() if p.requires_grad)
    _make_fake(clip, where)
    size = image_input(clip).size
    with torch.no_grad():
        width = pooled_features(visual, torch.empty(1, 3, size, size, device=where)).shape[1]
    return _ZeroShot(
        clip=clip.requires_grad_(False),
        head=torch.empty(len(prompts.names), width, device=where),
        contexts=torch.empty(len(prompts.templates), width, device=where),
        prompts=prompts,
        logit_scale=100.0,
        tokenizer=tokenizer,
        trainable=trainable,
        digest="",
    )


def _make_fake(module: nn.Module, where: torch.device) -> None:
    """Replace the tensors of a module on the meta device by fake ones."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=where)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(fake) if is_parameter else fake
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]


class _Mode(FakeTensorMode):
    """A copied tensor has the mode of its original; PyTorch 2.13 copies the mode, too."""

    def __deepcopy__(self, memo: dict[int, object]) -> FakeTensorMode:
        return self


class _ZeroShot(ZeroShotModel):
    """A fake model whose tokens are real, since their number depends on the texts."""

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        with unset_fake_temporarily():
            return super().tokenize(texts)

    def random_tokens(self, count: int, length: int, *, seed: int, step: int) -> Tensor:
        with unset_fake_temporarily():
            return super().random_tokens(count, length, seed=seed, step=step)


class _Features(ZeroShotFeatures):
    """Features of a fake zero-shot model, whose operations only the first trial needs."""

    recorder: Operations

    def _shared(self, *args: Any) -> Tensor:
        self.recorder.shared = True
        features = super()._shared(*args)
        self.recorder.shared = False
        return features
