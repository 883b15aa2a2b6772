"""Views of a picture: the random crop of training and the centre crop of evaluation."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from trainers.models import ImageInput

CROP_AREA = (0.08, 1.0)
"""Share of the picture's area that a random crop covers, by default."""
RATIO = (3 / 4, 4 / 3)
"""Width by height of a random crop."""
RESIZE_RATIO = 256 / 224
"""The short side is resized to this multiple of the model's input before the centre crop."""


def train_view(
    picture: Image.Image,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float] = CROP_AREA,
) -> Tensor:
    """Random resized crop and horizontal flip, (3, size, size) uint8, bicubic."""
    top, left, height, width = _random_crop(picture.height, picture.width, area, rng)
    view = functional.resized_crop(
        picture, top, left, height, width, [size, size], InterpolationMode.BICUBIC
    )
    if rng.random() < 0.5:
        view = functional.horizontal_flip(view)
    return functional.pil_to_tensor(view)


def eval_view(picture: Image.Image, size: int) -> Tensor:
    """The centre crop of the picture resized to 256/224 of `size`, (3, size, size) uint8."""
    short = round(size * RESIZE_RATIO)
    resized = functional.resize(picture, [short], InterpolationMode.BICUBIC)
    return functional.pil_to_tensor(functional.center_crop(resized, [size, size]))


def normalise(views: Tensor, image_input: ImageInput) -> Tensor:
    """uint8 views (B, 3, H, W) as the image encoder expects them, float32."""
    mean = torch.tensor(image_input.mean, device=views.device).view(3, 1, 1)
    std = torch.tensor(image_input.std, device=views.device).view(3, 1, 1)
    return (views.float() / 255 - mean) / std


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
