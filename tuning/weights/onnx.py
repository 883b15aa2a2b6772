"""An exported classifier as one ONNX file, for runtimes without Python or PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.models.image import pooled_features

ONNX = "model.onnx"
_PACKAGES = ("onnxruntime", "onnxscript")
_TOLERANCE = 1e-4
"""Greatest difference of a logit from PyTorch's, as a share of the logit scale."""


class _Logits(nn.Module):
    """Logits (N, K) of normalised images (N, 3, H, W)."""

    def __init__(self, clip: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.visual = cast(Any, clip).visual
        self.register_buffer("head", cast(Tensor, clip.logit_scale).exp().detach() * head)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.normalize(pooled_features(self.visual, images), dim=-1)
        return features @ cast(Tensor, self.head).T


def check_onnx() -> None:
    """Check that the packages are installed."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            hint = "pip install 'lipsum-tune[onnx]'"
            raise ConfigError(f"needs {package}", key="--onnx", hint=hint)


@torch.no_grad()
def write_onnx(folder: Path, clip: nn.Module, head: Tensor, about: Mapping[str, Any]) -> None:
    """Write ONNX: `images` (N, 3, H, W), normalised, to `logits` (N, K); the metadata are JSON."""
    import onnxruntime

    model = _Logits(clip, head).eval()
    size = about["preprocessing"]["size"]
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.13 uses functions that it deprecates
        program = torch.onnx.export(
            model,
            (images[:2],),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    metadata = {key: json.dumps(about[key]) for key in ("classes", "id_domain", "preprocessing")}
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(folder / ONNX, external_data=False)
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    off = (torch.from_numpy(found) - expected).abs().max().item() / about["logit_scale"]
    if not off <= _TOLERANCE:
        problem = f"ONNX Runtime's logits are off by {off:.2g} of their scale"
        raise ConfigError(problem, key="--onnx", hint="export without it")
