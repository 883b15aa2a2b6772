from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from trainers.data.views import _random_crop, eval_view, normalise, train_view
from trainers.models import ImageInput
from trainers.seeding import generator


def picture(height: int = 40, width: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_view_is_a_function_of_seed_step_and_sample() -> None:
    views = [train_view(picture(), 48, generator(0, "view", 5, 7)) for _ in range(2)]
    assert torch.equal(views[0], views[1])
    assert views[0].shape == (3, 48, 48)
    assert not torch.equal(views[0], train_view(picture(), 48, generator(0, "view", 6, 7)))


def test_crops_have_the_area_and_shape_that_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        top, left, h, w = _random_crop(400, 500, (0.2, 0.6), rng)
        assert 0 <= top <= 400 - h
        assert 0 <= left <= 500 - w
        assert 0.74 < w / h < 1.35
        shares.append(h * w / 200_000)
    assert 0.19 < min(shares) < 0.25
    assert 0.5 < max(shares) < 0.61


def test_a_picture_too_narrow_for_any_crop_is_cropped_in_its_centre() -> None:
    top, left, h, w = _random_crop(10, 1000, (1.0, 1.0), np.random.default_rng(0))
    assert (top, h) == (0, 10)
    assert w == round(10 * 4 / 3)
    assert left == (1000 - w) // 2


def test_the_evaluation_view_is_torchvisions_resize_and_centre_crop() -> None:
    expected = v2.Compose(
        [v2.Resize(55, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(48)]
    )(picture())
    assert torch.equal(eval_view(picture(), 48), v2.functional.pil_to_tensor(expected))


def test_normalisation_is_per_channel() -> None:
    views = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    out = normalise(views, ImageInput(2, (0.0, 0.5, 1.0), (1.0, 0.5, 2.0)))
    assert out[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
