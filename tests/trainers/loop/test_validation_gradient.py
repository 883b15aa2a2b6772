"""The gradient on ID validation images: of which ones, in which order, and against sums."""

from itertools import islice

import numpy as np
import pytest
import torch

from tests.trainers.curves import changed, short
from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import log_softmax
from trainers.loop import choose
from trainers.loop.images import load_split
from trainers.loop.training import start

BATCH = 10


@pytest.fixture
def training(trial, monkeypatch):
    """Of 24 ID validation images, three a class, looked at ten at a time."""
    monkeypatch.setattr(choose, "LOSS_BATCH_SIZE", BATCH)
    training = start(short(trial, "tpgm", precision="fp32"))
    training.micro_batch_size = BATCH
    return training


def gradient_of(training):
    images = load_split(training.setup.config, "val")["real"]
    return choose.validation_gradient(training, images)


def samples_of(training, number):
    """Places in the validation split of the images in the first so many batches."""
    taken = []

    def take(images, samples, *_, decoded):
        taken.extend(islice(samples, number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "eval_samples", take)
        gradient_of(training)
    return taken


def test_every_image_is_seen_once_before_any_is_seen_twice(training):
    """In an order of its own, though the files are sorted by class, that the seed alone decides."""
    batches, (_, labels) = samples_of(training, 12), by_open_clip.images_of(training.setup.config)
    assert [len(batch) for batch in batches] == 12 * [BATCH]
    order = [place for batch in batches for place in batch]
    epochs = [order[start : start + 24] for start in range(0, 120, 24)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert all(len({labels[place] for place in batch}) >= 5 for batch in batches)
    assert samples_of(training, 12) == batches
    other_seed = start(changed(training.setup.config, seed=1))
    assert samples_of(other_seed, 12) != batches


def test_the_gradient_of_other_weights_equals_sums_over_images(training):
    (batch,), (images, labels) = (
        samples_of(training, 1),
        by_open_clip.images_of(training.setup.config),
    )
    images, labels = images[batch], [labels[place] for place in batch]
    noise = torch.Generator().manual_seed(0)
    moved = {
        n: v + 0.01 * torch.randn(v.shape, generator=noise)
        for n, v in training.student.weights.items()
    }
    before = {name: value.clone() for name, value in training.student.plain_state().items()}
    found = gradient_of(training)(moved)

    features, s = by_open_clip.features(images, moved), by_open_clip.scale()
    logits = s * features @ moved["head"].double().numpy().T
    expected = np.zeros(logits.shape[1:] + features.shape[1:])
    for row, label, f in zip(logits, labels, features, strict=True):
        for k, log_p in enumerate(log_softmax(row)):
            expected[k] += s * (np.exp(log_p) - (k == label)) * f / len(labels)
    np.testing.assert_allclose(found["head"].numpy(), expected, rtol=1e-3, atol=1e-4)
    training.micro_batch_size = 4
    parts = gradient_of(training)(moved)
    for name, value in parts.items():
        torch.testing.assert_close(value, found[name], rtol=1e-3, atol=1e-5)
    # The student itself is as it was.
    assert all(torch.equal(value, before[n]) for n, value in training.student.plain_state().items())
