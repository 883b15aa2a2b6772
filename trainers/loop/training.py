"""A model that trains: its state, and one optimiser step.

A step's images are split into as many micro-batches as memory requires. A loss that is a mean over
images is computed for one after the other, and the gradients add up. A loss that compares the
images of a batch with each other needs all of them at once: features are computed by micro-batches
without gradients, the loss is taken of them, and each micro-batch is computed again to pass its
share of the gradient on (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", RepL4NLP 2021, arXiv 2101.06983). Either way, the gradient is that of the batch size
in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from trainers.checkpoints.format import Progress, TrainCurve
from trainers.config import TrialConfig
from trainers.data.loaders import to_device
from trainers.data.transforms import normalise
from trainers.distributed import gather, replicated
from trainers.errors import MicroBatchTooLarge, is_memory_exhausted
from trainers.loop.setup import KeptModel, Setup, set_up
from trainers.methods.base import Batch, Loss, Stage, Step, StepRandom
from trainers.models.averaging import update_average
from trainers.models.student import Outputs, Student


@dataclass(frozen=True)
class MicroBatch:
    """One worker's share of a step, or some images of it."""

    views: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64."""
    tokens: Tensor | None
    """(G, B, n), G texts for each image."""
    first: int
    """Index of the first image in the worker's share of the step."""


class Training:
    """The state of one fine-tuning on one worker."""

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        method = config.method
        self.setup = setup
        self.micro_batch_size = config.optim.micro_batch_of(config.optim.share(setup.world_size))
        """Images of a worker that go through the model at once."""
        self.student = setup.student()
        self.initial = self.student.initial()
        """Trained parameters before the first step."""
        self.optimizer = optimizer_of(self.student, config, method.stage(0, config.steps))
        self.scaler = setup.precision.scaler()
        has_average = method.average_decay(0, config.steps) is not None
        self.average = _copied(self.initial) if has_average else None
        """Moving average of the trained parameters that the loss reads, if the method has one."""
        self.ema_decay = config.eval.ema if method.ema is None else method.ema
        self.ema = None if self.ema_decay is None else _copied(self.initial)
        """Moving average that is evaluated: of the method, or of `eval.ema`."""
        self.progress = Progress()
        self.reports: list[dict[str, float]] = []
        """All reports so far, each with its `step`."""
        self.train_curves: list[TrainCurve] = []
        """The training curve before each report."""
        self.lr = 0.0
        """Of the last step."""
        self._model = replicated(self.student, setup.device)

    @property
    def is_done(self) -> bool:
        """Whether it has done all its steps."""
        return self.progress.step == self.setup.config.steps

    @property
    def is_due(self) -> bool:
        """Whether it is evaluated now."""
        return self.is_done or self.progress.step % self.setup.config.eval.every == 0

    def state_dict(self) -> dict[str, Any]:
        """All that training continues from."""
        return {
            "progress": self.progress,
            "reports": self.reports,
            "train_curves": self.train_curves,
            "trained": self.student.weights,
            "average": self.average,
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "micro_batch_size": self.micro_batch_size,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned in a training of any number of workers."""
        config = self.setup.config
        self.progress = state["progress"]
        self.reports, self.train_curves = state["reports"], state["train_curves"]
        for name, parameter in self.student.trained.items():
            parameter.copy_(state["trained"][name])
        for average, loaded in ((self.average, state["average"]), (self.ema, state["ema"])):
            if average is not None and loaded is not None:
                average.update({name: loaded[name] for name in average})
        # Stages differ in their groups of parameters. What was saved is of the last step's stage.
        stage = config.method.stage(max(0, self.progress.step - 1), config.steps)
        self.optimizer = optimizer_of(self.student, config, stage)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.micro_batch_size = min(state["micro_batch_size"], self.micro_batch_size)

    def enter_stage(self) -> None:
        """Go to the stage of the next step, which has an optimiser of its own; most methods have
        one stage."""
        config, number = self.setup.config, self.progress.step
        stage = config.method.stage(number, config.steps)
        if number == stage.first > 0:
            self.optimizer = optimizer_of(self.student, config, stage)
        self.student.head_alone = stage.head_alone

    def step(self, views: Tensor, labels: Tensor) -> Tensor:
        """Take the next optimiser step, and update the moving averages of the weights.

        If it runs out of memory, a worker that is alone takes it again with micro-batches of half
        the size. In float16, a step that overflows changes no weight.

        Returns:
            (6,) float64: loss, task loss, regulariser and gradient norm, and two ones, by which a
            sum over steps counts losses and norms. In float16, what overflows is 0 and counts 0.

        Args:
            views: (B, 3, H, W) uint8, this worker's share of the step's batch.
            labels: (B,) int64.

        Raises:
            MicroBatchTooLarge: one of several workers has run out of memory.
            OutOfMemoryError: single images do not fit.
        """
        setup, student = self.setup, self.student
        config, zero_shot = setup.config, setup.zero_shot
        method, number = config.method, self.progress.step

        # The texts of the images, tokenised: captions, spurious texts, or none.
        draw = StepRandom(
            config.seed, number, config.optim.batch_size, setup.rank, setup.world_size
        )
        texts = method.texts(labels.tolist(), zero_shot.prompts, draw)
        tokens = None
        if texts:
            flat = zero_shot.tokenize([text for kind in texts for text in kind])
            tokens = to_device(flat.unflatten(0, (len(texts), len(labels))), setup.device)
        views = to_device(views, setup.device)
        labels = to_device(labels, setup.device)

        # Forward and backward.
        features = setup.zero_shot_features
        trained = student.trained
        step = Step(zero_shot, features, number, config.steps, config.seed, trained, self.initial)
        self.optimizer.zero_grad(set_to_none=True)
        with method.during_step(student, draw):
            values = self._gradients(step, views, labels, tokens)

        # Reduce: the gradient of all workers.
        moving = {name: p for name, p in trained.items() if p.grad is not None}
        parameters: list[Tensor] = list(moving.values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        if setup.world_size > 1 and student.head_alone:  # DDP has not averaged them
            for gradient in gradients:
                gradient /= setup.world_size
                dist.all_reduce(gradient)

        # Add what the loss says of the weights alone, and clip, without the scale of float16.
        self.scaler.unscale_(self.optimizer)
        with torch.no_grad():
            initial = [self.initial[name] for name in moving]
            penalty = method.add_penalty(gradients, parameters, initial)
        if penalty is not None:
            reg, weight = penalty
            values += torch.stack([weight * reg, torch.zeros_like(reg), reg])
        norm = nn.utils.get_total_norm(gradients)
        if config.optim.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_grad_norm, norm)

        # Update the weights.
        stage = method.stage(number, config.steps)
        self.lr = config.optim.lr_at(number - stage.first, stage.steps, stage.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_factor"]
        with method.updating(trained, self.initial):
            self.scaler.step(self.optimizer)
        self.scaler.update()

        # Update their averages: of the loss, and of the evaluations.
        average_decay = method.average_decay(number, config.steps)
        if self.average is not None and average_decay is not None:
            update_average(self.average, self.student.weights, average_decay)
        if self.ema is not None and self.ema_decay is not None:
            update_average(self.ema, self.student.weights, self.ema_decay)
        self.progress.step += 1

        norm = norm.double()
        counts = values.new_ones(2)
        if self.scaler.is_enabled():  # the scaler skips a step that overflows
            counts = torch.stack([values.isfinite().all(), norm.isfinite()]).double()
            values = torch.where(counts[0] > 0, values, 0)
            norm = norm.nan_to_num(0, 0, 0)
        return torch.cat([values, norm.reshape(1), counts])

    def _gradients(
        self, step: Step, views: Tensor, labels: Tensor, tokens: Tensor | None
    ) -> Tensor:
        """Gradients of the loss by the trained parameters; its values (3,).

        If they do not fit into memory, they are computed again in micro-batches of half the size.
        """
        while True:
            micro_batches = []
            for first in range(0, len(labels), self.micro_batch_size):
                rows = slice(first, first + self.micro_batch_size)
                own = None if tokens is None else tokens[:, rows]
                micro_batches.append(MicroBatch(views[rows], labels[rows], own, first))
            per_image = self.setup.config.method.per_image
            take = self._per_image if per_image else self._across_images
            try:
                return take(step, micro_batches)
            except RuntimeError as error:
                if not is_memory_exhausted(error):
                    raise
                if self.micro_batch_size == 1:
                    problem = "single images do not fit into memory"
                    raise torch.OutOfMemoryError(problem) from error
                half = (self.micro_batch_size + 1) // 2
                if self.setup.world_size > 1:  # the others wait within a reduction
                    raise MicroBatchTooLarge(half) from error
            # Outside of the handler, whose traceback keeps what was computed in memory.
            self.micro_batch_size = half
            self.optimizer.zero_grad(set_to_none=True)
            if self.setup.device.type == "cuda":
                torch.cuda.empty_cache()

    def _per_image(self, step: Step, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Gradients of a loss that is a mean over images, one micro-batch after the
        other; its values (3,)."""
        images = sum(len(own.labels) for own in micro_batches)
        values = torch.zeros(3, dtype=torch.float64, device=self.setup.device)
        for own in micro_batches:
            share = len(own.labels) / images
            with self._reducing(own is micro_batches[-1]):
                outputs = (self._outputs(own), *self._teachers(step, [own]))
                batch = Batch(own.labels, *outputs, class_weights=self.setup.class_weights)
                loss = self.setup.config.method.loss(batch, step)
                self.scaler.scale(share * loss.total).backward()
            values += share * _values(loss)
        return values

    def _across_images(self, step: Step, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Gradients of a loss that compares images, of all workers; its values (3,).

        Several micro-batches go through the student twice: without gradients for the loss, and
        again to pass the gradients of the loss with respect to their outputs on.
        """
        twice = len(micro_batches) > 1
        with self._reducing(not twice):
            with torch.set_grad_enabled(not twice):
                outputs = _joined([self._outputs(own) for own in micro_batches])
                teachers = self._teachers(step, micro_batches)
            if twice:
                outputs = Outputs(*(tensor.detach().requires_grad_() for tensor in outputs))
            labels = gather(torch.cat([own.labels for own in micro_batches]))
            gathered = [None if of is None else _gathered(of) for of in (outputs, *teachers)]
            batch = Batch(labels, *gathered)  # type: ignore[arg-type]
            batch = replace(batch, class_weights=self.setup.class_weights)
            loss = self.setup.config.method.loss(batch, step)
            self.scaler.scale(loss.total).backward()
        for own in micro_batches if twice else ():
            rows = slice(own.first, own.first + len(own.labels))
            with self._reducing(own is micro_batches[-1]):
                _pass_on(self._outputs(own), outputs, rows)
        return _values(loss)

    def _outputs(self, own: MicroBatch) -> Outputs:
        """Those of the student."""
        images = normalise(own.views, self.setup.zero_shot.image_input)
        with self.setup.precision.autocast():
            outputs: Outputs = self._model(images, own.tokens)
        return outputs

    def _teachers(
        self, step: Step, micro_batches: Sequence[MicroBatch]
    ) -> tuple[Outputs | None, Outputs | None]:
        """Outputs of the zero-shot model and of the average of the weights, if the loss uses them.

        The zero-shot model's have logits in any case.
        """
        setup, zero_shot = self.setup, self.setup.zero_shot
        of_zero_shot, of_average = [], []
        for own in micro_batches if setup.config.method.needs_zero_shot else ():
            if own.tokens is None:
                at = (step.number, own.first, self.micro_batch_size)
                features = setup.zero_shot_features.of_views(own.views, *at)
                texts = features.new_zeros(0, *features.shape)
            else:
                with torch.no_grad(), setup.precision.autocast():
                    images = normalise(own.views, zero_shot.image_input)
                    features = zero_shot.image_features(images)
                    encoded = zero_shot.encode_tokens(own.tokens.flatten(0, 1))
                    texts = encoded.unflatten(0, own.tokens.shape[:2])
            scale = features.new_full((), zero_shot.logit_scale)
            of_zero_shot.append(Outputs(features, zero_shot.logits(features), texts, scale))
        for own in micro_batches if self.average is not None else ():
            images = normalise(own.views, zero_shot.image_input)
            with torch.no_grad(), setup.precision.autocast():
                average = dict(self.average or {})
                outputs: Outputs = functional_call(self.student, average, (images, own.tokens))
            of_average.append(outputs)
        return (
            _joined(of_zero_shot) if of_zero_shot else None,
            _joined(of_average) if of_average else None,
        )

    def _reducing(self, last: bool) -> AbstractContextManager[object]:
        """DDP averages gradients over workers only in the last backward pass of a step.

        While only the head trains, it would wait for gradients of the encoder for ever.
        """
        reduces = last and not self.student.head_alone
        if reduces or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()


def start(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    kept: KeptModel | None = None,
) -> Training:
    """The training before its first step."""
    return Training(set_up(config, device=device, kept=kept))


def optimizer_of(student: Student, config: TrialConfig, stage: Stage) -> torch.optim.Optimizer:
    """AdamW on the parameters that train, in groups of the same learning rate.

    AdamW decays a weight by the product of learning rate and weight decay. The factor of the head's
    rate divides its weight decay, so that it changes the head's updates but not its decay.
    """
    optim = config.optim
    depths = student.depths() if optim.layer_decay < 1 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.trained.items():
        factor = optim.layer_decay ** depths.get(name, 0)
        decay = optim.weight_decay
        if name == "head":
            factor = 1.0 if stage.head_alone else optim.head_lr_factor
            decay /= factor
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": own, "lr_factor": factor, "weight_decay": decay}
            for (factor, decay), own in groups.items()
        ],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def _joined(several: Sequence[Outputs]) -> Outputs:
    """The outputs of micro-batches as those of the whole."""
    features, logits, texts, scales = zip(*several, strict=True)
    return Outputs(torch.cat(features), torch.cat(logits), torch.cat(texts, dim=1), scales[0])


def _gathered(outputs: Outputs) -> Outputs:
    """The outputs of all workers' images, differentiable with respect to this worker's own."""
    features, logits, texts, scale = outputs
    if len(texts):
        texts = gather(texts.transpose(0, 1).contiguous()).transpose(0, 1)
    return Outputs(gather(features), gather(logits) if logits.numel() else logits, texts, scale)


def _pass_on(outputs: Outputs, leaves: Outputs, rows: slice) -> None:
    """Backpropagate from the outputs of a micro-batch with the gradients of its rows.

    The logit scale is the same in all of them: all of its gradient goes through the last one, in
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
