"""StarFT's divergence on spurious texts against sums over pairs, and the texts themselves."""

import numpy as np
import pytest

from tests.trainers.methods.by_hand import (
    assert_gradient,
    at,
    contrastive,
    differences,
    divergence,
    random_batch,
)
from trainers.methods.base import StepRandom
from trainers.methods.star_ft import StarFineTuning, spurious_templates

CLASSES = (0, 1, 0, 2, 1)
STAR_FT = StarFineTuning()


def of_other_classes(scores):
    """The scores (B, B) of images with the texts of other classes, row by row."""
    return [row[np.not_equal(CLASSES, own)] for row, own in zip(scores, CLASSES, strict=True)]


def arrays(outputs):
    """Features, features of the spurious texts, scale."""
    f, t = outputs.features.detach().numpy(), outputs.text_features.detach().numpy()
    return f, t[-1], outputs.logit_scale.item()


def test_loss_and_gradients_are_those_of_the_contrastive_one_and_the_divergence(zero_shot):
    batch = random_batch(classes=CLASSES, kinds=2)
    f, u, s = arrays(batch.student)
    f0, u0, s0 = arrays(batch.zero_shot)
    captions = batch.student.text_features[0].detach().numpy()
    loss = STAR_FT.loss(batch, at(zero_shot, 4, steps=10))
    loss.reg.backward()

    def of(features, texts):  # the pre-trained scale stands on both sides
        before, after = s0 * f0 @ u0.T, s0 * features @ texts.T
        return divergence(of_other_classes(before), of_other_classes(after))

    assert loss.task.item() == pytest.approx(contrastive(s * f @ captions.T), rel=1e-10)
    assert loss.reg.item() == pytest.approx(of(f, u), rel=1e-10)
    assert loss.total.item() == pytest.approx(loss.task.item() + 0.5 * 0.6 * of(f, u), rel=1e-10)
    assert_gradient(batch.student.features, lambda x: of(x, u), f)
    of_captions, of_spurious = batch.student.text_features.grad
    assert not of_captions.any()  # they have no part in it
    np.testing.assert_allclose(of_spurious, differences(lambda x: of(f, x), u), 1e-6, 1e-8)
    assert batch.student.logit_scale.grad is None


def test_a_batch_of_one_class_has_nothing_to_compare(zero_shot):
    batch = random_batch(classes=(1, 1, 1), kinds=2)
    reg = STAR_FT.loss(batch, at(zero_shot, 4)).reg
    reg.backward()
    assert reg.item() == 0
    assert not batch.student.features.grad.any()


def test_a_spurious_text_is_the_caption_in_a_template(zero_shot):
    labels, draw = [0, 2, 1], StepRandom(0, 9, batch_size=3)
    captions, spurious = STAR_FT.texts(labels, zero_shot.prompts, draw)
    assert captions == ["a photo of a cat.", "a photo of a fish.", "a photo of a dog."]
    for caption, text in zip(captions, spurious, strict=True):
        before, _, after = text.partition(caption.removesuffix("."))
        assert f"{before}{{}}{after}" in spurious_templates("background")
    assert StarFineTuning(reg_weight=0).texts(labels, zero_shot.prompts, draw) == (captions,)
