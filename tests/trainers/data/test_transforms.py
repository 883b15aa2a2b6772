import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import v2

from trainers.data.config import Augment, DataConfig
from trainers.data.transforms import (
    _random_crop,
    _tensorflow_crop,
    augmentation,
    eval_view,
    normalise,
    train_view,
)
from trainers.models.image import ImageInput
from trainers.seeding import generator


def image_input(size=48, **others):
    return ImageInput(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), **others)


def image(height=40, width=64):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


CROPS = DataConfig(crop_area=(0.08, 1.0))


def tensor(image):
    return v2.functional.pil_to_tensor(image)


def smooth(height, width):
    return image(5, 8).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_training_view_is_torchvisions_resized_crop_and_flip_of_the_tensor(interpolation):
    whole, wanted = smooth(90, 140), image_input(interpolation=interpolation)
    mode = v2.InterpolationMode(interpolation)
    flipped = []
    for step in range(20):
        view = train_view(tensor(whole), wanted, generator(0, "view", step, 0), CROPS)
        rng = generator(0, "view", step, 0)
        crop = _random_crop(90, 140, (0.08, 1.0), rng)
        expected = v2.functional.resized_crop(tensor(whole), *crop, [48, 48], mode, antialias=True)
        flipped.append(rng.random() < 0.5)
        if flipped[-1]:
            expected = v2.functional.horizontal_flip(expected)
        assert torch.equal(view, expected)
        unflipped = CROPS.model_copy(update={"flip": False})
        assert torch.equal(
            train_view(tensor(whole), wanted, generator(0, "view", step, 0), unflipped),
            view.flip(-1) if flipped[-1] else view,
        )
        by_pil = v2.functional.resized_crop(whole, *crop, [48, 48], mode)
        by_pil = v2.functional.horizontal_flip(by_pil) if flipped[-1] else by_pil
        difference = view.int() - tensor(by_pil).int()
        assert difference.abs().max() <= 3
    assert 4 < sum(flipped) < 16


def test_augmentations_are_torchvisions_after_crop_and_flip():
    whole, wanted = tensor(smooth(90, 140)), ImageInput(48, (0.5, 0.4, 0.3), (1.0, 1.0, 1.0))
    arguments = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    settings = Augment.model_validate(
        {"rand_augment": {"num_ops": 2}, "color_jitter": arguments, "random_erasing": {"p": 1}}
    )
    augment = augmentation(settings, wanted)
    theirs = [
        v2.RandAugment(num_ops=2, magnitude=9),
        v2.ColorJitter(**arguments),
        v2.RandomErasing(p=1, value=[127.5, 102.0, 76.5]),
    ]
    for step in range(10):
        rng = generator(0, "view", step, 0)
        expected = train_view(whole, wanted, rng, CROPS)
        torch.manual_seed(int(rng.integers(2**63)))
        for transform in theirs:
            expected = transform(expected)
        state = torch.get_rng_state()
        view = train_view(whole, wanted, generator(0, "view", step, 0), CROPS, augment)
        assert torch.equal(view, expected)
        assert torch.equal(torch.get_rng_state(), state)
    erased = (view == torch.tensor([127, 102, 76], dtype=torch.uint8)[:, None, None]).all(dim=0)
    assert 0.02 < erased.float().mean() < 0.4
    assert augmentation(Augment(), wanted) is None


def test_the_crop_of_an_image_too_narrow_for_any_is_its_centre():
    centre = _random_crop(10, 1000, (1.0, 1.0), np.random.default_rng(0))
    assert centre == (0, (1000 - 13) // 2, 10, round(10 * 4 / 3))


def test_evaluation_resizes_by_crop_pct_and_normalises_per_channel():
    short = v2.Resize(55, interpolation=v2.InterpolationMode.BICUBIC)
    expected = v2.Compose([short, v2.CenterCrop(48)])(image())
    assert torch.equal(eval_view(image(), image_input(), 0.875), tensor(expected))
    views = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    out = normalise(views, ImageInput(2, (0.0, 0.5, 1.0), (1.0, 0.5, 2.0)))
    assert out[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(40, 64), (131, 50), (48, 48), (300, 299), (2, 90)])
def test_every_way_to_make_an_image_square_is_open_clips(resize_mode, interpolation, shape):
    zero_one = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    cfg = PreprocessCfg(size=48, resize_mode=resize_mode, interpolation=interpolation, **zero_one)
    theirs = image_transform_v2(cfg, is_train=False)(image(*shape))
    wanted = image_input(resize_mode=resize_mode, interpolation=interpolation)
    ours = eval_view(image(*shape), wanted, crop_pct=1.0)
    assert torch.equal(ours, (theirs * 255).round().to(torch.uint8))
    if resize_mode != "shortest":
        assert torch.equal(ours, eval_view(image(*shape), wanted, crop_pct=0.5))


@pytest.mark.parametrize(("height", "width"), [(300, 400), (256, 256)])
def test_tensorflows_crops_have_a_uniform_ratio_and_height(height, width):
    rng = generator(0, "crops")
    crops = np.array([_tensorflow_crop(height, width, (0.08, 1.0), rng) for _ in range(20_000)])
    top, left, heights, widths = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + heights <= height).all()
    assert (left + widths <= width).all()
    area = heights * widths / (height * width)
    assert area.min() >= 0.1
    # The mean area on a grid of ratios and heights, of which those below a tenth are drawn again.
    ratio = np.linspace(3 / 4, 4 / 3, 801)[:, None]
    lowest = np.sqrt(0.08 * height * width / ratio)
    highest = np.minimum(np.minimum(np.sqrt(height * width / ratio), height), width / ratio)
    of_grid = (lowest + (highest - lowest) * np.linspace(0, 1, 801)) ** 2 * ratio / (height * width)
    assert area.mean() == pytest.approx(of_grid[of_grid >= 0.1].mean(), rel=0.01)
    plain = [_random_crop(height, width, (0.08, 1.0), rng)[2:] for _ in range(2_000)]
    assert 0.8 < area.mean() / (np.prod(plain, axis=1).mean() / (height * width)) < 0.92


def test_the_law_of_crops_is_chosen_and_takes_the_centre_if_none_fits():
    whole, rng = tensor(smooth(90, 140)), generator(0, "view")
    crop = v2.functional.crop(whole, *_tensorflow_crop(90, 140, (0.08, 1.0), rng))
    expected = v2.functional.resize(crop, [48, 48], v2.InterpolationMode.BICUBIC, antialias=True)
    expected = expected.flip(-1) if rng.random() < 0.5 else expected
    rng = generator(0, "view")
    tensorflow = CROPS.model_copy(update={"crop_law": "tensorflow"})
    view = train_view(whole, image_input(), rng, tensorflow)
    assert torch.equal(view, expected)
    assert _tensorflow_crop(80, 96, (0.99, 1.0), generator(0, "view")) == (5, 13, 70, 70)
