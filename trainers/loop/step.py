"""One optimiser step, its images split into as many parts as memory requires.

A loss that is a mean over images is computed part by part, and the gradients add up. A loss that
compares the images of a batch with each other needs all of them at once: features are computed part
by part without gradients, the loss is taken of them, and each part is computed again to pass its
share of the gradient on (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", RepL4NLP 2021, arXiv 2101.06983). Either way, the gradient is that of the batch
size in the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from trainers.data.transforms import normalise
from trainers.loop.distributed import any_worker, average_gradients, gather, replicated, whole
from trainers.loop.state import TrainState
from trainers.methods.base import Batch, Loss, Step, StepRandom
from trainers.models.student import Outputs

UNPROVEN = 2
"""Number of steps after which peak memory has been reached: in the first one the optimiser has no
moments yet. Counted from the start of the process (a resumed run may have less memory), of a stage
and after each evaluation (which may leave other weights in memory)."""


@dataclass(frozen=True)
class Inputs:
    """One worker's share of a step, or a part of it."""

    views: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64."""
    tokens: Tensor | None
    """(G, B, n), G texts for each image."""
    step: int
    """Index of the optimiser step."""
    first: int
    """Index of the first image in the worker's share of the step."""


class Stepper:
    """Takes the steps of one run.

    If a step runs out of memory, its parts are halved and it is taken again. Several workers must
    agree on that, which is impossible in the middle of DDP's reductions: so the first steps, which
    may not fit, average their gradients afterwards. In any later step, and in sharded models, an
    out-of-memory error of one of several workers is raised, and the trial fails.
    """

    def __init__(self, run: TrainState) -> None:
        self._run, self._method, self._first = run, run.config.method, run.progress.step
        self._model: nn.Module = run.student
        if run.config.parallel == "ddp":
            self._model = replicated(run.student, run.device)
        self._is_replicated = isinstance(self._model, DistributedDataParallel)
        self._may_retry = False
        """Whether a step that runs out of memory can be taken again: no other worker waits."""
        self._reduces_later = False
        """Whether gradients are averaged after the backward passes, not by DDP within them."""

    def step(self, number: int, views: Tensor, labels: Tensor, *, lr: float) -> Tensor:
        """Take one optimiser step; return loss, task loss, regulariser and gradient norm, float64.

        Args:
            number: of the step, from 0. By it, features of the zero-shot model are stored.
            views: (B, 3, H, W) uint8, this worker's share of the step's batch.
            labels: (B,) int64.

        Raises:
            OutOfMemoryError: single images do not fit, or other workers wait for this one.
        """
        run, config, method = self._run, self._run.config, self._method
        stage = method.stage(number, config.steps)
        since = (number - stage.first, number % config.eval.every, number - self._first)
        unproven = min(since) < UNPROVEN
        self._may_retry = run.world_size == 1 or (self._is_replicated and unproven)
        # While only the head trains, DDP would wait for gradients of the encoder.
        self._reduces_later = self._is_replicated and (unproven or run.student.head_alone)

        # The texts of the images, tokenised: captions, spurious texts, or none.
        draw = StepRandom(config.seed, number, config.optim.batch_size, run.rank, run.world_size)
        texts, tokens = method.texts(labels.tolist(), run.zero_shot.prompts, draw), None
        if texts:
            flat = run.zero_shot.tokenize([text for kind in texts for text in kind])
            tokens = flat.unflatten(0, (len(texts), len(labels))).to(run.device)
        views = views.to(run.device, non_blocking=True)
        labels = labels.to(run.device, non_blocking=True)

        # Forward and backward passes, again with smaller parts while memory does not suffice.
        take = self._per_image if method.per_image else self._across_images
        weights, initial = run.student.trained, run.initial
        zero_shot, shared = run.zero_shot, run.zero_shot_features
        step = Step(zero_shot, shared, number, config.steps, config.seed, weights, initial)
        values = None
        with method.during_step(run.student, draw):
            while values is None:
                run.optimizer.zero_grad(set_to_none=True)
                parts = []
                for first in range(0, len(labels), run.micro_batch_size):
                    rows = slice(first, first + run.micro_batch_size)
                    own = None if tokens is None else tokens[:, rows]
                    parts.append(Inputs(views[rows], labels[rows], own, number, first))
                try:
                    values = take(step, parts)
                except torch.OutOfMemoryError:
                    if not self._may_retry:
                        raise
                if self._failed_on_any_worker(values is None):
                    values = None
                    self._halve_parts()

        # The gradient of all workers, unscaled (float16) and clipped.
        if self._reduces_later:
            average_gradients(run.student.parameters())
        run.scaler.unscale_(run.optimizer)
        parameters = [p for p in run.student.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config.optim.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_grad_norm, norm)
        norm = whole(norm)
        if run.scaler.is_enabled():  # the scaler skips a step whose gradients overflowed
            norm = norm.nan_to_num(0, 0, 0)

        for group in run.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        run.scaler.step(run.optimizer)
        run.scaler.update()
        return torch.cat([values, norm.double().reshape(1)])

    def _per_image(self, step: Step, parts: Sequence[Inputs]) -> Tensor:
        """Gradients of a loss that is a mean over images, part by part; its values (3,)."""
        images = sum(len(part.labels) for part in parts)
        values = torch.zeros(3, dtype=torch.float64, device=self._run.device)
        for part in parts:
            share = len(part.labels) / images
            with self._reducing(part is parts[-1]):
                batch = Batch(part.labels, self._student(part), *self._teachers([part]))
                loss = self._method.loss(batch, step)
                self._run.scaler.scale(share * loss.total).backward()
            values += share * _values(loss)
        return values

    def _across_images(self, step: Step, parts: Sequence[Inputs]) -> Tensor:
        """Gradients of a loss that compares images, of all workers; its values (3,).

        Several parts go through the student twice: without gradients for the loss, and again to
        pass the gradients of the loss with respect to their outputs on.
        """
        twice = len(parts) > 1
        with self._reducing(not twice):
            # Before any worker gathers the outputs of others, all must have theirs.
            found = None
            try:
                with torch.set_grad_enabled(not twice):
                    student = _joined([self._student(part) for part in parts])
                    found = student, *self._teachers(parts)
            except torch.OutOfMemoryError:
                if not self._may_retry:
                    raise
            if self._failed_on_any_worker(found is None) or found is None:
                raise torch.OutOfMemoryError("on one of the workers")
            outputs, zero_shot, average = found
            del found, student
            if twice:
                outputs = Outputs(*(tensor.detach().requires_grad_() for tensor in outputs))
            teachers = [None if t is None else _gathered(t) for t in (zero_shot, average)]
            labels = gather(torch.cat([part.labels for part in parts]))
            loss = self._method.loss(Batch(labels, _gathered(outputs), *teachers), step)
            self._run.scaler.scale(loss.total).backward()
        first = 0
        for part in parts if twice else ():
            rows = slice(first, first := first + len(part.labels))
            with self._reducing(part is parts[-1]):
                _pass_on(self._student(part), outputs, rows)
        return _values(loss)

    def _student(self, part: Inputs) -> Outputs:
        images = normalise(part.views, self._run.zero_shot.image_input)
        with self._run.precision.autocast():
            outputs: Outputs = self._model(images, part.tokens)
        return outputs

    def _teachers(self, parts: Sequence[Inputs]) -> tuple[Outputs | None, Outputs | None]:
        """Outputs of the zero-shot model and of the average of the weights, if the loss uses them.

        The zero-shot model's have logits in any case.
        """
        run, zero_shot = self._run, self._run.zero_shot
        of_zero_shot, of_average = [], []
        for part in parts if self._method.needs_zero_shot else ():
            if part.tokens is None:
                shared = run.zero_shot_features
                at = (part.step, part.first, run.micro_batch_size)
                features = shared.of_views(part.views, *at)
                texts = features.new_zeros(0, *features.shape)
            else:
                with torch.no_grad(), run.precision.autocast():
                    images = normalise(part.views, zero_shot.image_input)
                    features = zero_shot.image_features(images)
                    encoded = zero_shot.encode_tokens(part.tokens.flatten(0, 1))
                    texts = encoded.unflatten(0, part.tokens.shape[:2])
            scale = features.new_full((), zero_shot.logit_scale)
            logits = scale * features @ zero_shot.head.T
            of_zero_shot.append(Outputs(features, logits, texts, scale))
        for part in parts if self._method.needs_average else ():
            images = normalise(part.views, zero_shot.image_input)
            with torch.no_grad(), run.precision.autocast():
                average = dict(run.average or {})
                outputs: Outputs = functional_call(run.student, average, (images, part.tokens))
            of_average.append(outputs)
        return (
            _joined(of_zero_shot) if of_zero_shot else None,
            _joined(of_average) if of_average else None,
        )

    def _reducing(self, last: bool) -> AbstractContextManager[object]:
        """DDP averages gradients over workers only in the last backward pass of a step.

        A sharded model does so in every one: its gradients would otherwise be kept unsharded.
        """
        model = self._model
        if isinstance(model, DistributedDataParallel) and (self._reduces_later or not last):
            return model.no_sync()
        return nullcontext()

    def _failed_on_any_worker(self, here: bool) -> bool:
        """Whether memory did not suffice here or, where a retry is possible, on any worker."""
        return any_worker(here, self._run.device) if self._may_retry else here

    def _halve_parts(self) -> None:
        run = self._run
        if run.micro_batch_size == 1:
            raise torch.OutOfMemoryError(
                "optim.micro_batch_size = 1: single images do not fit into memory; set "
                "activation_checkpointing = true, or parallel = 'fsdp' with more workers a trial"
            )
        run.micro_batch_size = (run.micro_batch_size + 1) // 2
        run.optimizer.zero_grad(set_to_none=True)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of parts as those of the whole."""
    features, logits, texts, scales = zip(*parts, strict=True)
    return Outputs(torch.cat(features), torch.cat(logits), torch.cat(texts, dim=1), scales[0])


def _gathered(outputs: Outputs) -> Outputs:
    """The outputs of all workers' images, differentiable with respect to this worker's own."""
    features, logits, texts, scale = outputs
    if len(texts):
        texts = gather(texts.transpose(0, 1).contiguous()).transpose(0, 1)
    return Outputs(gather(features), gather(logits) if logits.numel() else logits, texts, scale)


def _pass_on(outputs: Outputs, leaves: Outputs, rows: slice) -> None:
    """Backpropagate from the outputs of a part with the gradients of its rows.

    The logit scale is the same in every part: all of its gradient goes through the last one, in
    which DDP waits for the gradients of all parameters.
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


def _values(loss: Loss) -> Tensor:
    """Total, task loss and regulariser, (3,) float64."""
    return torch.stack([loss.total, loss.task, loss.reg]).detach().double()
