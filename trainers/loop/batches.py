"""What one worker puts into a step, and what models make of it, in parts and put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from trainers.data.transforms import normalise
from trainers.loop.distributed import gather
from trainers.loop.state import TrainState
from trainers.methods import Method, StepRandom
from trainers.models.student import Outputs
from trainers.seeding import generator


@dataclass(frozen=True)
class Inputs:
    """One worker's share of a step, or a part of it."""

    views: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64."""
    tokens: Tensor | None
    """(G, B, n), G texts an image."""
    adapter_scale: Tensor | None
    """(S,), a factor for each adapter, the same for all images."""

    def parts(self, size: int) -> list[Inputs]:
        """The same in parts of at most so many images."""
        return list(self._parts(size))

    def _parts(self, size: int) -> Iterator[Inputs]:
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            tokens = None if self.tokens is None else self.tokens[:, part]
            yield Inputs(self.views[part], self.labels[part], tokens, self.adapter_scale)


def step_inputs(run: TrainState, number: int, views: Tensor, labels: Tensor) -> Inputs:
    """A worker's share with its texts, on the run's device.

    Args:
        run: its method says which texts.
        number: of the step.
        views: (B, 3, H, W) uint8.
        labels: (B,) int64.
    """
    config, device, method = run.config, run.device, run.config.method
    draw = StepRandom(config.seed, number, config.optim.batch_size, run.rank, run.world_size)
    texts = method.texts(labels.tolist(), run.zero_shot.prompts, draw)
    tokens = None
    if texts:
        flat = run.zero_shot.tokenize([text for kind in texts for text in kind])
        tokens = flat.unflatten(0, (len(texts), len(labels))).to(device)
    return Inputs(
        views.to(device, non_blocking=True),
        labels.to(device),
        tokens,
        _adapter_scale(method, run.student.num_adapters, config.seed, number, device),
    )


def _adapter_scale(
    method: Method, number: int, seed: int, step: int, device: torch.device
) -> Tensor | None:
    """For each adapter 0, with the method's drop rate p, or 1 / (1 - p)."""
    if not method.adapter_drop_rate:
        return None
    kept = generator(seed, "adapters", step).random(number) >= method.adapter_drop_rate
    return torch.from_numpy(kept).float().to(device) / (1 - method.adapter_drop_rate)


def zero_shot_outputs(run: TrainState, inputs: Inputs) -> Outputs:
    """What the zero-shot model says of the same views and texts; logits in any case."""
    zero_shot, tokens = run.zero_shot, inputs.tokens
    with torch.no_grad(), run.precision.autocast():
        features = zero_shot.image_features(normalise(inputs.views, zero_shot.image_input))
        texts = features.new_zeros(0, *features.shape)
        if tokens is not None:
            texts = zero_shot.encode_tokens(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    scale = torch.tensor(zero_shot.logit_scale, device=run.device)
    return Outputs(features, scale * features @ zero_shot.head.T, texts, scale)


def average_outputs(run: TrainState, inputs: Inputs) -> Outputs:
    """What the student says of them with the average of its weights so far."""
    images = normalise(inputs.views, run.zero_shot.image_input)
    with torch.no_grad(), run.precision.autocast():
        outputs: Outputs = functional_call(
            run.student, dict(run.average or {}), (images, inputs.tokens)
        )
    return outputs


def joined(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of parts as those of the whole."""
    features, logits, texts, scales = zip(*parts, strict=True)
    return Outputs(torch.cat(features), torch.cat(logits), torch.cat(texts, dim=1), scales[0])


def gathered(outputs: Outputs) -> Outputs:
    """The outputs of all workers' images, differentiable in this worker's own."""
    features, logits, texts, scale = outputs
    if len(texts):
        texts = gather(texts.transpose(0, 1).contiguous()).transpose(0, 1)
    return Outputs(gather(features), gather(logits) if logits.numel() else logits, texts, scale)
