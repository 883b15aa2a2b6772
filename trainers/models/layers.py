"""The layers of an encoder, from its embedding up: for rates by layer and for partial freezing."""

from __future__ import annotations

from open_clip.timm_model import TimmModel
from timm.models import group_parameters
from torch import nn

from trainers.errors import ConfigError
from trainers.models.clip import skeleton
from trainers.models.config import ModelConfig

_EMBEDDING = "class_embedding|positional_embedding|token_embedding|embeddings|cls_emb|ln_pre"
_MATCHER = {
    "embedding": rf"(?!attnpool|.*\.\d+\.)(?:.*\.)?(?:{_EMBEDDING}|conv\d|bn\d)\b",
    "blocks": [(r"(?:.*?\.)?(?:resblocks|layers?)\.(\d+)\.", None), (r"layer(\d)\.", None)],
}
"""As timm's models describe their layers: towers of open_clip, its ResNets, and Hugging Face's."""


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """The layer of each parameter: 0 is the embedding, then the blocks, then what follows them."""
    if isinstance(encoder, TimmModel):
        of_trunk = group_parameters(encoder.trunk, encoder.trunk.group_matcher(), reverse=True)
        last = max(of_trunk.values())
        found = {f"trunk.{name}": layer for name, layer in of_trunk.items()}
        return {name: found.get(name, last) for name, _ in encoder.named_parameters()}
    layers: dict[str, int] = group_parameters(encoder, _MATCHER, reverse=True)
    return layers


def check_frozen_layers(model: ModelConfig, frozen: int) -> None:
    """Raise a `ConfigError` if the image encoder has no more layers than those."""
    if not frozen:
        return
    visual = skeleton(model).get_submodule("visual")
    if frozen > (last := max(layers_of(visual).values())):
        problem = f"the image encoder has {last} layers below its last, which must train"
        raise ConfigError(problem, key="optim.frozen_layers", value=frozen)
