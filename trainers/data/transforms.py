"""Views of an image: the random crop of training and the centre crop of evaluation.

Evaluation resizes with PIL, bit for bit as open_clip's own preprocessing on any machine. Training
resizes uint8 tensors, which takes a third of the time and differs from PIL by a few of 255 grey
levels; CPUs with AVX2 give equal bits, others differ in the rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from trainers.data.config import Augment, DataConfig
from trainers.models.image import ImageInput

RATIO = (3 / 4, 4 / 3)
"""Width by height of a random crop."""


def train_view(
    image: Tensor,
    image_input: ImageInput,
    rng: np.random.Generator,
    data: DataConfig,
    augment: nn.Module | None = None,
) -> Tensor:
    """Random resized crop and perhaps horizontal flip, (3, H, W) to (3, size, size), both uint8.

    If the image has the model's size and the crop is all of it, its pixels stay the same. `augment`
    follows, see `augmentation`.
    """
    _, whole_height, whole_width = image.shape
    crop_of = _random_crop if data.crop_law == "torchvision" else _tensorflow_crop
    top, left, height, width = crop_of(whole_height, whole_width, data.crop_area, rng)
    crop = image[:, top : top + height, left : left + width]
    size = [image_input.size, image_input.size]
    interpolation = InterpolationMode(image_input.interpolation)
    view = functional.resize(crop, size, interpolation, antialias=True)
    view = view.flip(-1) if data.flip and rng.random() < 0.5 else view
    if augment is None:
        return view
    with torch.random.fork_rng(devices=[]):  # torchvision draws from PyTorch's generator
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # not those of GPUs
        return augment(view)


def augmentation(augment: Augment, image_input: ImageInput) -> nn.Module | None:
    """Torchvision's transforms of uint8 views (3, size, size); None if all are off.

    What is erased becomes the mean that the model subtracts.
    """
    used: list[nn.Module] = []
    if augment.rand_augment.num_ops:
        used.append(v2.RandAugment(**augment.rand_augment.model_dump()))
    if any((jitter := augment.color_jitter.model_dump()).values()):
        used.append(v2.ColorJitter(**jitter))
    if augment.random_erasing.p:
        mean: Any = [255 * value for value in image_input.mean]
        used.append(v2.RandomErasing(**augment.random_erasing.model_dump(), value=mean))
    return nn.Sequential(*used) if used else None


def eval_view(image: Image.Image, image_input: ImageInput, crop_pct: float = 1.0) -> Tensor:
    """The whole RGB image or its centre, (3, size, size) uint8.

    An image becomes square by a centre crop after its short side is resized to size / crop_pct
    (`shortest`), by stretching (`squash`), or with black bars (`longest`).
    """
    size, interpolation = image_input.size, InterpolationMode(image_input.interpolation)
    if image_input.resize_mode == "squash":
        view = functional.resize(image, [size, size], interpolation)
    elif image_input.resize_mode == "longest":
        scale = size / max(image.size)
        sides = [max(1, round(side * scale)) for side in (image.height, image.width)]
        view = functional.center_crop(functional.resize(image, sides, interpolation), [size, size])
    else:
        short = functional.resize(image, [round(size / crop_pct)], interpolation)
        view = functional.center_crop(short, [size, size])
    return functional.pil_to_tensor(view)


def normalise(views: Tensor, image_input: ImageInput) -> Tensor:
    """uint8 views (B, 3, H, W) as the image encoder expects them, float32."""
    mean, std = _mean_and_std(image_input, views.device)
    return views.float().div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=8)  # a GPU would wait for the copies in every step
def _mean_and_std(image_input: ImageInput, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # for later use outside of it
        mean, std = (torch.tensor(v, device=device) for v in (image_input.mean, image_input.std))
        return mean.view(3, 1, 1), std.view(3, 1, 1)


def _random_crop(
    height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width), distributed as torchvision's `RandomResizedCrop`."""
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * RATIO[1]))  # no crop fitted: the largest centre crop that may
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _tensorflow_crop(
    height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width), distributed as TensorFlow's `sample_distorted_bounding_box`.

    Ratio and height are uniform, not the logarithm of the ratio and the area. The crop has at least
    a tenth of the image (`min_object_covered = 0.1`). If none fitted, it is the centre that the
    authors of Lipsum-FT take then, which is the one of their evaluation.
    """
    least, most = max(area[0], 0.1) * height * width, area[1] * height * width
    for _ in range(10):
        ratio = rng.uniform(*RATIO)
        lowest = round(math.sqrt(area[0] * height * width / ratio))
        highest = min(round(math.sqrt(most / ratio)), height, int((width + 0.5) / ratio))
        h = int(rng.integers(min(lowest, highest), highest + 1))
        w = min(round(h * ratio), width)
        if h > 0 and w > 0 and least <= h * w <= most:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = round(224 / 256 * min(height, width))
    return (height - side) // 2, (width - side) // 2, side, side
