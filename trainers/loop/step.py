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
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from trainers.data.transforms import normalise
from trainers.distributed import gather, replicated
from trainers.errors import MicroBatchTooLarge, is_memory_exhausted
from trainers.loop.state import TrainState
from trainers.loop.zero_shot_features import to_device
from trainers.methods.base import Batch, Loss, Step, StepRandom
from trainers.models.averaging import update_average
from trainers.models.student import Outputs


@dataclass(frozen=True)
class MicroBatch:
    """One worker's share of a step, or a part of it."""

    views: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64."""
    tokens: Tensor | None
    """(G, B, n), G texts for each image."""
    first: int
    """Index of the first image in the worker's share of the step."""


class Stepper:
    """Takes the steps of one run; `class_weights` are (K,)."""

    def __init__(self, run: TrainState, class_weights: Tensor | None = None) -> None:
        self._class_weights = None if class_weights is None else class_weights.to(run.device)
        self._run, self._method = run, run.config.method
        self._model = replicated(run.student, run.device)

    def step(self, number: int, views: Tensor, labels: Tensor, *, lr: float) -> Tensor:
        """Take one optimiser step, and update the moving averages of the weights.

        If it runs out of memory, a worker that is alone takes it again with parts of half the size.
        In float16, a step that overflows changes no weight.

        Returns:
            (6,) float64: loss, task loss, regulariser and gradient norm, and two ones, by which a
            sum over steps counts losses and norms. In float16, what overflows is 0 and counts 0.

        Args:
            number: of the step, from 0. By it, features of the zero-shot model are stored.
            views: (B, 3, H, W) uint8, this worker's share of the step's batch.
            labels: (B,) int64.

        Raises:
            MicroBatchTooLarge: one of several workers has run out of memory.
            OutOfMemoryError: single images do not fit.
        """
        run, config, method = self._run, self._run.config, self._method

        # The texts of the images, tokenised: captions, spurious texts, or none.
        draw = StepRandom(config.seed, number, config.optim.batch_size, run.rank, run.world_size)
        texts = method.texts(labels.tolist(), run.zero_shot.prompts, draw)
        tokens = None
        if texts:
            flat = run.zero_shot.tokenize([text for kind in texts for text in kind])
            tokens = to_device(flat.unflatten(0, (len(texts), len(labels))), run.device)
        views = views.to(run.device, non_blocking=True)
        labels = labels.to(run.device, non_blocking=True)

        step = Step(
            run.zero_shot,
            run.zero_shot_features,
            number,
            config.steps,
            config.seed,
            run.student.trained,
            run.initial,
        )
        with method.during_step(run.student, draw):
            values = self._gradients(step, views, labels, tokens)

        # The gradient of all workers, unscaled (float16) and clipped.
        parameters = [p for p in run.student.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if run.world_size > 1 and run.student.head_alone:  # DDP has not averaged them
            for gradient in gradients:
                gradient /= run.world_size
                dist.all_reduce(gradient)
        run.scaler.unscale_(run.optimizer)
        norm = nn.utils.get_total_norm(gradients)
        if config.optim.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_grad_norm, norm)

        for group in run.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        with method.updating(run.student.trained, run.initial):
            run.scaler.step(run.optimizer)
        run.scaler.update()

        # Moving averages of the new weights: of the loss, and of the evaluations.
        average_decay = method.average_decay(number, config.steps)
        if run.average is not None and average_decay is not None:
            update_average(run.average, run.weights, average_decay)
        if run.ema is not None and run.ema_decay is not None:
            update_average(run.ema, run.weights, run.ema_decay)

        norm = norm.double()
        counts = values.new_ones(2)
        if run.scaler.is_enabled():  # the scaler skips a step that overflows
            counts = torch.stack([values.isfinite().all(), norm.isfinite()]).double()
            values = torch.where(counts[0] > 0, values, 0)
            norm = norm.nan_to_num(0, 0, 0)
        return torch.cat([values, norm.reshape(1), counts])

    def _gradients(
        self, step: Step, views: Tensor, labels: Tensor, tokens: Tensor | None
    ) -> Tensor:
        """Gradients of the loss by the trained parameters; its values (3,).

        If they do not fit into memory, they are computed again in parts of half the size.
        """
        run = self._run
        size = run.micro_batch_size
        parts = []
        for first in range(0, len(labels), size):
            rows = slice(first, first + size)
            own = None if tokens is None else tokens[:, rows]
            parts.append(MicroBatch(views[rows], labels[rows], own, first))
        take = self._per_image if self._method.per_image else self._across_images
        run.optimizer.zero_grad(set_to_none=True)
        try:
            return take(step, parts)
        except RuntimeError as error:
            if not is_memory_exhausted(error):
                raise
            if size == 1:
                raise torch.OutOfMemoryError("single images do not fit into memory") from error
            half = (size + 1) // 2
            if run.world_size > 1:  # the others wait within a reduction
                raise MicroBatchTooLarge(half) from error
        # Outside of the handler, whose traceback keeps what was computed in memory.
        run.micro_batch_size = half
        run.optimizer.zero_grad(set_to_none=True)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._gradients(step, views, labels, tokens)

    def _per_image(self, step: Step, parts: Sequence[MicroBatch]) -> Tensor:
        """Gradients of a loss that is a mean over images, part by part; its values (3,)."""
        images = sum(len(part.labels) for part in parts)
        values = torch.zeros(3, dtype=torch.float64, device=self._run.device)
        for part in parts:
            share = len(part.labels) / images
            with self._reducing(part is parts[-1]):
                outputs = (self._student(part), *self._teachers(step, [part]))
                batch = Batch(part.labels, *outputs, class_weights=self._class_weights)
                loss = self._method.loss(batch, step)
                self._run.scaler.scale(share * loss.total).backward()
            values += share * _values(loss)
        return values

    def _across_images(self, step: Step, parts: Sequence[MicroBatch]) -> Tensor:
        """Gradients of a loss that compares images, of all workers; its values (3,).

        Several parts go through the student twice: without gradients for the loss, and again to
        pass the gradients of the loss with respect to their outputs on.
        """
        twice = len(parts) > 1
        with self._reducing(not twice):
            with torch.set_grad_enabled(not twice):
                outputs = _joined([self._student(part) for part in parts])
                teachers = self._teachers(step, parts)
            if twice:
                outputs = Outputs(*(tensor.detach().requires_grad_() for tensor in outputs))
            labels = gather(torch.cat([part.labels for part in parts]))
            gathered = [None if of is None else _gathered(of) for of in (outputs, *teachers)]
            batch = Batch(labels, *gathered)  # type: ignore[arg-type]
            batch = replace(batch, class_weights=self._class_weights)
            loss = self._method.loss(batch, step)
            self._run.scaler.scale(loss.total).backward()
        for part in parts if twice else ():
            rows = slice(part.first, part.first + len(part.labels))
            with self._reducing(part is parts[-1]):
                _pass_on(self._student(part), outputs, rows)
        return _values(loss)

    def _student(self, part: MicroBatch) -> Outputs:
        images = normalise(part.views, self._run.zero_shot.image_input)
        with self._run.precision.autocast():
            return self._model(images, part.tokens)

    def _teachers(
        self, step: Step, parts: Sequence[MicroBatch]
    ) -> tuple[Outputs | None, Outputs | None]:
        """Outputs of the zero-shot model and of the average of the weights, if the loss uses them.

        The zero-shot model's have logits in any case.
        """
        run, zero_shot = self._run, self._run.zero_shot
        of_zero_shot, of_average = [], []
        for part in parts if self._method.needs_zero_shot else ():
            if part.tokens is None:
                at = (step.number, part.first, run.micro_batch_size)
                features = run.zero_shot_features.of_views(part.views, *at)
                texts = features.new_zeros(0, *features.shape)
            else:
                with torch.no_grad(), run.precision.autocast():
                    images = normalise(part.views, zero_shot.image_input)
                    features = zero_shot.image_features(images)
                    encoded = zero_shot.encode_tokens(part.tokens.flatten(0, 1))
                    texts = encoded.unflatten(0, part.tokens.shape[:2])
            scale = features.new_full((), zero_shot.logit_scale)
            of_zero_shot.append(Outputs(features, zero_shot.logits(features), texts, scale))
        for part in parts if run.average is not None else ():
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

        While only the head trains, it would wait for gradients of the encoder for ever.
        """
        reduces = last and not self._run.student.head_alone
        if reduces or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()


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
    known = [(to, grad[at]) for to, grad, at in pairs if to.requires_grad and grad is not None]
    torch.autograd.backward([to for to, _ in known], [grad for _, grad in known])


def _values(loss: Loss) -> Tensor:
    """Total, task loss and regulariser, (3,) float64."""
    reg = torch.zeros_like(loss.task) if loss.reg is None else loss.reg
    return torch.stack([loss.total, loss.task, reg]).detach().double()
