"""The gradient on ID validation images: of which ones, in which order, and against sums."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from tests.trainers.curves import short
from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import log_softmax
from trainers.loop import evaluate_run
from trainers.loop.state import load_split, start

BATCH = 10


@pytest.fixture
def run(trial, monkeypatch):
    """Of 24 ID validation images, three a class, looked at ten at a time."""
    monkeypatch.setattr(evaluate_run, "LOSS_BATCH_SIZE", BATCH)
    run = start(short(trial, "tpgm", precision="fp32"))
    run.micro_batch_size = BATCH
    return run


def samples_of(run, number):
    """Places in the validation split of the images in the first so many batches."""
    taken = []

    def take(images, samples, *_):
        taken.extend(islice(samples, number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_run, "eval_samples", take)
        evaluate_run.validation_gradient(run, load_split(run.config, "val")["real"])
    return taken


def test_every_image_is_seen_once_before_any_is_seen_twice(run):
    """In an order of its own, though the files are sorted by class, that the seed alone decides."""
    batches, (_, labels) = samples_of(run, 12), by_open_clip.images_of(run.config)
    assert [len(batch) for batch in batches] == 12 * [BATCH]
    order = [place for batch in batches for place in batch]
    epochs = [order[start : start + 24] for start in range(0, 120, 24)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert all(len({labels[place] for place in batch}) >= 5 for batch in batches)
    assert samples_of(run, 12) == batches
    other_seed = replace(run, config=run.config.model_copy(update={"seed": 1}))
    assert samples_of(other_seed, 12) != batches


def test_the_gradient_of_other_weights_equals_sums_over_images(run):
    (batch,), (images, labels) = samples_of(run, 1), by_open_clip.images_of(run.config)
    images, labels = images[batch], [labels[place] for place in batch]
    noise = torch.Generator().manual_seed(0)
    moved = {n: v + 0.01 * torch.randn(v.shape, generator=noise) for n, v in run.weights.items()}
    before = {name: value.clone() for name, value in run.student.plain_state().items()}
    found = evaluate_run.validation_gradient(run, load_split(run.config, "val")["real"])(moved)

    features, s = by_open_clip.features(images, moved), by_open_clip.scale()
    logits = s * features @ moved["head"].double().numpy().T
    expected = np.zeros(logits.shape[1:] + features.shape[1:])
    for row, label, f in zip(logits, labels, features, strict=True):
        for k, log_p in enumerate(log_softmax(row)):
            expected[k] += s * (np.exp(log_p) - (k == label)) * f / len(labels)
    np.testing.assert_allclose(found["head"].numpy(), expected, rtol=1e-3, atol=1e-4)
    run.micro_batch_size = 4
    parts = evaluate_run.validation_gradient(run, load_split(run.config, "val")["real"])(moved)
    for name, value in parts.items():
        torch.testing.assert_close(value, found[name], rtol=1e-3, atol=1e-5)
    # The student itself is as it was.
    assert all(torch.equal(value, before[n]) for n, value in run.student.plain_state().items())
