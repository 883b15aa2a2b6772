"""What is trained: the image encoder with its head, both encoders, or adapters in both."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from trainers.models import encode_tokens, ends_at_the_end_token, pooled_features
from trainers.models.adapters import Adapters
from trainers.models.zero_shot import ZeroShotModel

Trains: TypeAlias = Literal["image_encoder", "both_encoders", "adapters"]

NOT_TRAINED = ("text_decoder.", "logit_bias")
"""Parameters of open_clip's models that neither features nor their scale depend on."""


class Outputs(NamedTuple):
    """What a model says of B images with G kinds of text each; K classes, D features."""

    features: Tensor
    """(B, D) float32, L2-normalised."""
    logits: Tensor
    """(B, K) float32: ``logit_scale * features @ head.T``; (B, 0) where texts are in its place."""
    text_features: Tensor
    """(G, B, D) float32, L2-normalised; G may be 0."""
    logit_scale: Tensor
    """Scalar: the exponential of CLIP's parameter."""


class TextTower(nn.Module):
    """The text encoder of a CLIP with its projection and the logit scale, without the images'."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = copy.deepcopy(clip, {id(clip.visual): None})

    @property
    def ends_at_the_end_token(self) -> bool:
        """Whether what stands behind a text's end token does not matter."""
        return ends_at_the_end_token(self.clip)

    @property
    def logit_scale(self) -> Tensor:
        """The exponential of the parameter, a scalar."""
        return cast(Tensor, self.clip.logit_scale).squeeze().exp()

    def forward(self, tokens: Tensor) -> Tensor:
        """L2-normalised float32 features (N, D) of token sequences (N, n)."""
        return encode_tokens(self.clip, tokens).float()


class Student(nn.Module):
    """A classifier of images that starts as the zero-shot model.

    With `trains = "image_encoder"` the head trains too: it has no bias and is not normalised
    again, and the logit scale stays as it was. With `"both_encoders"` everything of the CLIP
    trains, its logit scale included, and with `"adapters"` linear maps in both encoders while the
    encoders stay: there is no head to train then. For evaluation one is made of the class prompts
    (`trainers.models.text_head.heads_of`) and put into `head`.

    The encoders are always in evaluation mode, though their parameters train. A ResNet's running
    statistics stay the pre-trained ones: those of a worker's share of a batch would differ between
    workers, and the features would leave the zero-shot model's before the first step. Dropout,
    patch dropout and stochastic depth of pre-training are off: the regularisers compare features
    of one view, and what is random here is a function of (seed, step, sample). CLIP's
    transformers have none of these and are the same in both modes.
    """

    logit_scale: Tensor
    head: Tensor

    def __init__(self, zero_shot: ZeroShotModel, trains: Trains = "image_encoder") -> None:
        super().__init__()
        self.trains = trains
        self.head_alone = False
        """Whether the image encoder is left as it is for the time being."""
        with_adapters = trains == "adapters"
        self.visual = zero_shot.visual if with_adapters else copy.deepcopy(zero_shot.visual)
        self.text = None if trains == "image_encoder" else TextTower(zero_shot.clip)
        self.visual_adapters = Adapters(self.visual) if with_adapters else None
        self.text_adapters = Adapters(self.text) if with_adapters and self.text else None
        if trains == "image_encoder":
            self.head = nn.Parameter(zero_shot.head.clone())
        else:
            self.register_buffer("head", zero_shot.head.clone(), persistent=False)
        self.register_buffer("logit_scale", torch.tensor(zero_shot.logit_scale), persistent=False)
        if not with_adapters:
            for name, parameter in self.visual.named_parameters():
                parameter.requires_grad_(name in zero_shot.trainable)
            for name, parameter in self._text_parameters():
                parameter.requires_grad_(not name.startswith(NOT_TRAINED))
        self.train()

    def train(self, mode: bool = True) -> Student:
        """Everything but the encoders, which stay in evaluation mode."""
        super().train(mode)
        self.visual.eval()
        if self.text is not None:
            self.text.eval()
        return self

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name; to be asked for once they are where they stay."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def num_adapters(self) -> int:
        """In both encoders."""
        both = (self.visual_adapters, self.text_adapters)
        return sum(len(adapters) for adapters in both if adapters is not None)

    def initial(self, zero_shot: ZeroShotModel) -> dict[str, Tensor]:
        """What `trained` was before any step; the zero-shot model's own tensors where it has them.

        To be asked before the first step.
        """
        if self.trains == "adapters":
            return {name: p.detach().clone() for name, p in self.trained.items()}
        before: dict[str, Tensor] = {"head": zero_shot.head}
        before |= {f"visual.{name}": p for name, p in zero_shot.visual.named_parameters()}
        before |= {f"text.clip.{name}": p for name, p in zero_shot.clip.named_parameters()}
        return {name: before[name].detach() for name in self.trained}

    def forward(
        self,
        images: Tensor | None,
        tokens: Tensor | None = None,
        adapter_scale: Tensor | None = None,
    ) -> Outputs:
        """What the student says of images (B, 3, H, W) and of texts.

        Args:
            images: normalised; none for texts alone.
            tokens: (G, B, n), G texts an image; not looked at where no text encoder trains.
            adapter_scale: (S,), a factor for each adapter of both encoders, the images' first.
        """
        scale = self.logit_scale if self.text is None else self.text.logit_scale
        features = self.head.new_zeros(0, self.head.shape[1])
        if images is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head_alone):
                pooled = self._encode_images(images, adapter_scale)
            features = functional.normalize(pooled.float(), dim=-1)
        if tokens is not None and self.text is not None:
            flat = self._encode_texts(tokens.flatten(0, 1), adapter_scale)
            texts = flat.unflatten(
                0, tokens.shape[:2]
            ).clone()  # FSDP wants no views of its modules
            return Outputs(features, features.new_zeros(len(features), 0), texts, scale)
        with torch.autocast(features.device.type, enabled=False):
            logits = scale * features @ self.head.T
        return Outputs(features, logits, features.new_zeros(0, *features.shape), scale)

    @torch.no_grad()
    def plain_state(self) -> dict[str, Tensor]:
        """The weights without adapters, which are merged: `visual.*`, `head`, `text.*` if trained.

        Names are those of open_clip's modules, so that its own loader knows them.
        """
        state = {f"visual.{name}": value for name, value in self.visual.state_dict().items()}
        if self.text is not None:
            state |= {f"text.{k}": v for k, v in self.text.clip.state_dict().items()}
        if self.visual_adapters is not None and self.text_adapters is not None:
            merged = self.visual_adapters.merged(self.visual)
            state |= {f"visual.{name}": value for name, value in merged.items()}
            merged = self.text_adapters.merged(cast(nn.Module, self.text))
            state |= {f"text.{k.removeprefix('clip.')}": value for k, value in merged.items()}
        return state | {"head": self.head.detach()}

    def _text_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [] if self.text is None else list(self.text.clip.named_parameters())

    def _encode_images(self, images: Tensor, adapter_scale: Tensor | None) -> Tensor:
        if self.visual_adapters is None:
            return pooled_features(self.visual, images)
        scale = None if adapter_scale is None else adapter_scale[: len(self.visual_adapters)]
        return pooled_features(_Adapted(self.visual, self.visual_adapters, scale), images)

    def _encode_texts(self, tokens: Tensor, adapter_scale: Tensor | None) -> Tensor:
        text = cast(TextTower, self.text)
        if self.text_adapters is None:
            return cast(Tensor, text(tokens))
        scale = None if adapter_scale is None else adapter_scale[-len(self.text_adapters) :]
        return cast(Tensor, _Adapted(text, self.text_adapters, scale)(tokens))


class _Adapted:
    """An encoder whose weights are, for the length of a call, those with the adapters merged."""

    def __init__(self, encoder: nn.Module, adapters: Adapters, scale: Tensor | None) -> None:
        self._encoder, self._adapters, self._scale = encoder, adapters, scale

    def __call__(self, inputs: Tensor) -> Any:
        weights = self._adapters.merged(self._encoder, self._scale)
        return functional_call(self._encoder, weights, (inputs,))
