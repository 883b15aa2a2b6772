"""What losses of real images are checked against: open_clip's own forward pass, in float64."""

from types import SimpleNamespace

import numpy as np
import torch

from tests.trainers.curves import first_batch, short
from trainers.data.loaders import eval_batches
from trainers.data.transforms import normalise
from trainers.loop.images import load_split
from trainers.loop.training import start
from trainers.models.clip import load_clip
from trainers.models.config import ModelConfig
from trainers.models.image import image_input

TEMPLATES = ("a photo of a {}.", "a sketch of a {}.", "one {}")
SUITE = {"id_domain": "real", "ood_domains": ["sketch"], "templates": TEMPLATES}


@torch.no_grad()
def features(images, weights=None):
    """L2-normalised features (B, D) of images, by the embedded model or one of its weights."""
    clip = load_clip(ModelConfig())
    if weights is not None:
        own = {n.removeprefix("visual."): v for n, v in weights.items() if n.startswith("visual.")}
        clip.visual.load_state_dict(own)
    return clip.double().encode_image(images.double(), normalize=True).numpy()


def logits(images, weights):
    """(B, K) of images, by `visual.*` and `head`."""
    return scale() * features(images, weights) @ weights["head"].double().numpy().T


def scale():
    """s of the embedded model."""
    return float(np.exp(load_clip(ModelConfig()).logit_scale.item()))


def images_of(config, split="val"):
    """All of the ID domain's images as evaluation sees them, and their labels."""
    size = image_input(load_clip(config.model))
    images = load_split(config, split)[config.data.id_domain]
    views, labels = next(eval_batches(images, size, len(images)))
    return normalise(views, size), labels.tolist()


def take_step(trial, method):
    """One on real images, from random weights near the zero-shot ones, and what it was made of.

    `weights` are those before the step.
    """
    training = start(short(trial, method, data__suite=SUITE, precision="fp32"))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in training.student.trained.values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=noise))
    weights = {name: value.clone() for name, value in training.student.plain_state().items()}
    training.progress.step = 2
    views, labels = first_batch(training)
    loss, task, reg, *_ = training.step(views, labels).tolist()
    images = normalise(views, training.setup.zero_shot.image_input)
    figures = {"loss": loss, "task": task, "reg": reg}
    return SimpleNamespace(
        training=training, weights=weights, images=images, labels=labels.tolist(), **figures
    )
