"""One optimiser step, its images through the model in as many parts as memory asks for.

A loss that is a mean over images is taken part by part, and the gradients add up. One that
compares a batch's images with each other needs all of them at once: features are computed part
by part without gradients, the loss is taken of them, and each part is computed again to pass its
share of the gradient on (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", RepL4NLP 2021, arXiv 2101.06983). Either way, the batch is the configuration's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.data.transforms import normalise
from trainers.loop.batches import (
    Inputs,
    average_outputs,
    gathered,
    joined,
    step_inputs,
    zero_shot_outputs,
)
from trainers.loop.distributed import any_worker, average_gradients, gather, replicated, whole
from trainers.loop.state import TrainState
from trainers.methods import Batch, Loss, Step
from trainers.models.student import Outputs

UNPROVEN = 2
"""Steps after which all that a step needs has been in memory: in the first there are not yet the
moments of the optimiser, an evaluation may leave other weights behind, and a run that goes on from
a checkpoint may do so where there is less memory."""


class Stepper:
    """Takes the steps of one run.

    Where memory does not suffice, the parts are halved and the step is taken again. Several
    workers must agree on that, which they cannot in the midst of DDP's reductions: so the steps
    that may be the first not to fit reduce their gradients afterwards. Any other, and all of a
    sharded model, end with the error, and a restart goes on from the last checkpoint.

    Args:
        run: whose state moves on; as it stands when its training begins or goes on.
    """

    def __init__(self, run: TrainState) -> None:
        self._run, self._method, self._began = run, run.config.method, run.progress.step
        self._model: nn.Module = run.student
        if run.config.parallel == "ddp":
            self._model = replicated(run.student, run.device)
        self._replicated = isinstance(self._model, DistributedDataParallel)
        self._may_not_fit = self._apart = False

    def step(self, number: int, views: Tensor, labels: Tensor, *, lr: float) -> Tensor:
        """Take a step; loss, task loss, regulariser and gradient norm, (4,) float64.

        Args:
            number: of the step.
            views: (B, 3, H, W) uint8, this worker's share.
            labels: (B,) int64.
            lr: learning rate.

        Raises:
            OutOfMemoryError: not even single images fit, or another worker waits for this one.
        """
        run = self._run
        self._may_not_fit = self._is_unproven(number)
        # DDP would wait for the gradients of an encoder that is left as it is.
        self._apart = self._replicated and (self._may_not_fit or run.student.head_alone)
        inputs = step_inputs(run, number, views, labels)
        while (figures := self._gradients(number, inputs)) is None:
            self._halve()
        if self._apart:
            average_gradients(run.student.parameters())
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        norm = self._gradient_norm()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        return torch.cat([figures, norm.double().reshape(1)])

    def _is_unproven(self, number: int) -> bool:
        config = self._run.config
        stage = self._method.stage(number, config.steps)
        since = (number - stage.first, number % config.eval.every, number - self._began)
        return min(since) < UNPROVEN

    def _gradients(self, number: int, inputs: Inputs) -> Tensor | None:
        """The step's gradients into the parameters, and its figures (3,); None: out of memory."""
        run, config = self._run, self._run.config
        run.optimizer.zero_grad(set_to_none=True)
        step = Step(
            run.zero_shot, number, config.steps, config.seed, run.student.trained, run.initial
        )
        parts = inputs.parts(run.micro_batch_size)
        figures: Tensor | None = None
        try:
            take = self._each if self._method.per_image else self._together
            figures = take(step, parts)
        except torch.OutOfMemoryError:
            if not self._can_halve:
                raise
        return None if self._lacking(figures is None) else figures

    @property
    def _can_halve(self) -> bool:
        """Whether no other worker waits for this one meanwhile."""
        return self._run.world_size == 1 or (self._replicated and self._may_not_fit)

    def _lacking(self, here: bool) -> bool:
        """Whether memory did not suffice here or, while that can be asked, on any worker."""
        return any_worker(here, self._run.device) if self._can_halve else here

    def _halve(self) -> None:
        run = self._run
        if run.micro_batch_size == 1:
            raise torch.OutOfMemoryError(
                "optim.micro_batch_size = 1: not even single images fit into memory; write "
                "activation_checkpointing = true, or parallel = 'fsdp' with more workers a trial"
            )
        run.micro_batch_size = (run.micro_batch_size + 1) // 2
        run.optimizer.zero_grad(set_to_none=True)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()

    def _each(self, step: Step, parts: Sequence[Inputs]) -> Tensor:
        """Of images that count each for itself: the mean of the parts' losses."""
        images = sum(len(part.labels) for part in parts)
        figures = torch.zeros(3, dtype=torch.float64, device=self._run.device)
        for part in parts:
            share = len(part.labels) / images
            with self._reducing(part is parts[-1]):
                batch = Batch(part.labels, self._outputs(part), *self._teachers([part]))
                loss = self._method.loss(batch, step)
                self._run.scaler.scale(share * loss.total).backward()
            figures += share * _figures(loss)
        return figures

    def _together(self, step: Step, parts: Sequence[Inputs]) -> Tensor:
        """Of images that are compared with each other; several parts go through twice."""
        twice = len(parts) > 1
        with self._reducing(not twice):
            with torch.set_grad_enabled(not twice):
                outputs, *teachers = self._all_outputs(parts)
            if twice:
                outputs = Outputs(*(tensor.detach().requires_grad_() for tensor in outputs))
            zero_shot, average = (None if t is None else gathered(t) for t in teachers)
            labels = gather(torch.cat([part.labels for part in parts]))
            loss = self._method.loss(Batch(labels, gathered(outputs), zero_shot, average), step)
            self._run.scaler.scale(loss.total).backward()
        first = 0
        for part in parts if twice else ():
            rows = slice(first, first := first + len(part.labels))
            with self._reducing(part is parts[-1]):
                _pass_on(self._outputs(part), outputs, rows)
        return _figures(loss)

    def _outputs(self, part: Inputs) -> Outputs:
        images = normalise(part.views, self._run.zero_shot.image_input)
        with self._run.precision.autocast():
            outputs: Outputs = self._model(images, part.tokens, part.adapter_scale)
        return outputs

    def _all_outputs(
        self, parts: Sequence[Inputs]
    ) -> tuple[Outputs, Outputs | None, Outputs | None]:
        """Of the student and its teachers; none waits for the others' before all have theirs."""
        found = None
        try:
            found = joined([self._outputs(part) for part in parts]), *self._teachers(parts)
        except torch.OutOfMemoryError:
            if not self._can_halve:
                raise
        if self._lacking(found is None) or found is None:
            raise torch.OutOfMemoryError("on one of the workers")
        return found

    def _teachers(self, parts: Sequence[Inputs]) -> tuple[Outputs | None, Outputs | None]:
        """What the zero-shot model and the average say of the parts, where the loss asks."""
        run, method = self._run, self._method
        zero_shot = average = None
        if method.needs_zero_shot:
            zero_shot = joined([zero_shot_outputs(run, part) for part in parts])
        if method.needs_average:
            average = joined([average_outputs(run, part) for part in parts])
        return zero_shot, average

    def _reducing(self, last: bool) -> AbstractContextManager[object]:
        """DDP averages gradients over workers in the last backward pass of a step alone.

        A sharded model does in every one: kept until the last, they would be whole.
        """
        model = self._model
        if isinstance(model, DistributedDataParallel) and (self._apart or not last):
            return model.no_sync()
        return nullcontext()

    def _gradient_norm(self) -> Tensor:
        """Of all parameters together, before it is clipped; 0 where float16 overflowed."""
        run, limit = self._run, self._run.config.optim.clip_grad_norm
        run.scaler.unscale_(run.optimizer)
        parameters = [p for p in run.student.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        norm = whole(norm)
        return norm.nan_to_num(0, 0, 0) if run.scaler.is_enabled() else norm


def _pass_on(outputs: Outputs, leaves: Outputs, rows: slice) -> None:
    """Give a part's outputs the gradients of their rows.

    The logit scale is the same in every part: all of its gradient goes through the last, in which
    DDP waits for every parameter's.
    """
    pairs = [
        (outputs.features, leaves.features.grad, (rows,)),
        (outputs.logits, leaves.logits.grad, (rows,)),
        (outputs.text_features, leaves.text_features.grad, (slice(None), rows)),
    ]
    if rows.stop == len(leaves.features):
        pairs.append((outputs.logit_scale, leaves.logit_scale.grad, ()))
    known = [
        (output, grad[at])
        for output, grad, at in pairs
        if output.requires_grad and grad is not None
    ]
    torch.autograd.backward([output for output, _ in known], [grad for _, grad in known])


def _figures(loss: Loss) -> Tensor:
    return torch.stack([loss.total, loss.task, loss.reg]).detach().double()
