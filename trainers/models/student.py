"""The model that trains: it starts as the zero-shot model, and the method decides what trains.

A method's `prepare` chooses `train_image_encoder` or `train_both_encoders`, or inserts modules of
its own and sets `requires_grad`.
"""

import copy
from functools import cached_property
from typing import NamedTuple, Self, cast

import torch
from open_clip.timm_model import TimmModel
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from trainers.models.image import pooled_features
from trainers.models.text import encode_tokens
from trainers.models.zero_shot import ZeroShotModel

_EMBEDDING = "class_embedding|positional_embedding|token_embedding|embeddings|cls_emb|ln_pre"
_MATCHER = {
    "embedding": rf"(?!attnpool|.*\.\d+\.)(?:.*\.)?(?:{_EMBEDDING}|conv\d|bn\d)\b",
    "blocks": [(r"(?:.*?\.)?(?:resblocks|layers?)\.(\d+)\.", None), (r"layer(\d)\.", None)],
}
"""As timm's models describe their layers: towers of open_clip, its ResNets, and Hugging Face's."""

NOT_TRAINED = ("text_decoder.", "logit_bias")
"""Parameters of open_clip's models that neither the features nor their scale depend on."""


class Outputs(NamedTuple):
    """Outputs of a model for B images with G kinds of text each; K classes, D features."""

    features: Tensor
    """(B, D) float32, L2-normalised."""
    logits: Tensor
    """(B, K) float32: ``logit_scale * features @ head.T``; (B, 0) if texts were given instead."""
    text_features: Tensor
    """(G, B, D) float32, L2-normalised; G may be 0."""
    logit_scale: Tensor
    """Scalar: the exponential of CLIP's parameter."""


class TextTower(nn.Module):
    """The text encoder of a CLIP with its projection and the logit scale."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = copy.deepcopy(clip, {id(clip.visual): None})

    @property
    def logit_scale(self) -> Tensor:
        """The exponential of the parameter, a scalar."""
        return cast(Tensor, self.clip.logit_scale).squeeze().exp()

    def forward(self, tokens: Tensor) -> Tensor:
        """L2-normalised float32 features (N, D) of token sequences (N, n)."""
        return encode_tokens(self.clip, tokens)


class Student(nn.Module):
    """A CLIP image classifier that starts as the zero-shot model, with nothing trainable yet.

    Without a text encoder, the head is a classifier without a bias; it is not normalised again, and
    the logit scale stays as it was. With one (`text`), the loss compares images with texts, and the
    head is made of the class prompts for each evaluation (`trainers.models.text_head.heads_of`).

    It stays in evaluation mode while it trains, whoever calls `train()`. A ResNet's running
    statistics stay the pre-trained ones: those of a worker's share of a batch would differ between
    workers, and the features would leave the zero-shot model's before the first step. Dropout,
    patch dropout and stochastic depth of pre-training are off: the regularisers compare features
    of one view, and everything random is a function of (seed, step, sample). CLIP's
    transformers have none of these and are the same in both modes.
    """

    logit_scale: Tensor
    head: Tensor

    def __init__(self, zero_shot: ZeroShotModel) -> None:
        super().__init__()
        self._zero_shot = zero_shot
        self.head_alone = False
        """Whether only the head trains at present (first stage of LP-FT)."""
        self.visual = copy.deepcopy(zero_shot.visual).requires_grad_(False)
        self.text: TextTower | None = None
        self.register_buffer("head", zero_shot.head.clone(), persistent=False)
        self.register_buffer("logit_scale", torch.tensor(zero_shot.logit_scale), persistent=False)

    def train_head(self) -> None:
        """Let the classification head train."""
        del self.head  # a buffer so far
        self.head = nn.Parameter(self._zero_shot.head.clone())

    def train_image_encoder(self) -> None:
        """Let the image encoder and the head train."""
        self.train_head()
        for name, parameter in self.visual.named_parameters():
            parameter.requires_grad_(name in self._zero_shot.trainable)

    def train_both_encoders(self) -> None:
        """Let both encoders train, with their projections and the logit scale."""
        for name, parameter in self.visual.named_parameters():
            parameter.requires_grad_(name in self._zero_shot.trainable)
        for name, parameter in self.add_text_encoder().clip.named_parameters():
            parameter.requires_grad_(not name.startswith(NOT_TRAINED))

    def add_text_encoder(self) -> TextTower:
        """A frozen copy of the text encoder, as `text`."""
        self.text = TextTower(self._zero_shot.clip)
        return self.text.requires_grad_(False)

    def depths(self) -> dict[str, int]:
        """The number of layers above that of each parameter of the encoders."""
        found: dict[str, int] = {}
        for tower, encoder in (("visual", self.visual), ("text", self.text)):
            layers = layers_of(encoder) if encoder is not None else {}
            last = max(layers.values(), default=0)
            found |= {f"{tower}.{name}": last - layer for name, layer in layers.items()}
        return found

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name. First read once they are on their final device."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The values of `trained`: views, which the next step changes."""
        return {name: parameter.detach() for name, parameter in self.trained.items()}

    def initial(self) -> dict[str, Tensor]:
        """The values of `trained` before the first step; call it before the first step.

        Tensors of the zero-shot model are shared, not copied.
        """
        before: dict[str, Tensor] = {"head": self._zero_shot.head}
        before |= {f"visual.{name}": p for name, p in self._zero_shot.visual.named_parameters()}
        before |= {f"text.clip.{name}": p for name, p in self._zero_shot.clip.named_parameters()}
        return {
            name: before[name].detach() if name in before else value.detach().clone()
            for name, value in self.trained.items()
        }

    def forward(self, images: Tensor | None, tokens: Tensor | None = None) -> Outputs:
        """Features of images and texts, and logits if no texts are given.

        Args:
            images: (B, 3, H, W), normalised; None for texts alone.
            tokens: (G, B, n), G texts for each image; ignored without a text encoder.
        """
        scale = self.logit_scale if self.text is None else self.text.logit_scale
        features = self.head.new_zeros(0, self.head.shape[1])
        if images is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head_alone):
                pooled = pooled_features(self.visual, images)
            features = functional.normalize(pooled.float(), dim=-1)
        if tokens is not None and self.text is not None:
            texts = self.text(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            return Outputs(features, features.new_zeros(len(features), 0), texts, scale)
        with torch.autocast(features.device.type, enabled=False):
            logits = scale * features @ self.head.T
        return Outputs(features, logits, features.new_zeros(0, *features.shape), scale)

    @torch.no_grad()
    def plain_state(self) -> dict[str, Tensor]:
        """Weights under open_clip's names: `visual.*`, `head`, and `text.*` with a text encoder.

        Parametrizations (`torch.nn.utils.parametrize`) are merged.
        """
        state = {f"visual.{name}": value for name, value in _plain(self.visual).items()}
        if self.text is not None:
            state |= {f"text.{name}": value for name, value in _plain(self.text.clip).items()}
        return state | {"head": self.head.detach()}


def _plain(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as it is without its parametrizations."""
    state = {n: v for n, v in module.state_dict().items() if ".parametrizations." not in f".{n}"}
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            for tensor in cast(nn.ModuleDict, part.parametrizations):
                state[f"{name}.{tensor}".lstrip(".")] = getattr(part, tensor).detach()
    return state


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """The layer of each parameter: 0 is the embedding, then the blocks, then what follows them."""
    if isinstance(encoder, TimmModel):
        of_trunk = group_parameters(encoder.trunk, encoder.trunk.group_matcher(), reverse=True)
        last = max(of_trunk.values())
        found = {f"trunk.{name}": layer for name, layer in of_trunk.items()}
        return {name: found.get(name, last) for name, _ in encoder.named_parameters()}
    return group_parameters(encoder, _MATCHER, reverse=True)
