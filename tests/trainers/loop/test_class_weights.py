"""Weights of classes in the cross-entropy."""

import numpy as np
import pytest
import torch

from tests.conftest import CLASSES
from tests.trainers.curves import assert_near, curve, short
from trainers.checks import check_trial
from trainers.errors import ConfigError
from trainers.loop.setup import class_weights
from trainers.methods.base import Batch, cross_entropy
from trainers.models.student import Outputs

LABELS, NAMES = np.array([0, 0, 0, 1, 0, 0]), ("cat", "dog", "owl")


def test_auto_is_the_inverse_number_of_images_with_mean_1():
    weights = class_weights("auto", LABELS, NAMES)
    assert weights[:2].tolist() == pytest.approx([6 / 10, 6 / 2])
    assert weights[LABELS].mean().item() == pytest.approx(1)


def test_named_classes_are_relative_to_the_others():
    weights = class_weights({"dog": 4.0}, LABELS, NAMES)
    assert weights.tolist() == pytest.approx([6 / 9, 24 / 9, 6 / 9])


def test_the_loss_is_the_weighted_mean_over_images():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 2])
    weights = torch.tensor([0.5, 1.0, 3.0])
    of_image = [-logits[n].log_softmax(0)[label] for n, label in enumerate(labels)]
    expected = (0.5 * of_image[0] + of_image[1] + of_image[2] + 3 * of_image[3]) / 4
    batch = Batch(labels, Outputs(logits, logits, logits, torch.tensor(1.0)), class_weights=weights)
    torch.testing.assert_close(cross_entropy(batch), expected)


def test_a_weighted_step_is_the_same_in_parts_of_any_size(trial):
    weighted = {"class_weights": {CLASSES[0]: 5.0}, "steps": 2, "optim__eps": 1e-3}
    whole, parts = (
        curve(short(trial, "ft", optim__micro_batch_size=size, **weighted)) for size in (8, 3)
    )
    assert_near(parts, whole)
    plain = curve(short(trial, "ft", steps=2, optim__eps=1e-3))
    assert plain[-1]["train/loss"] != pytest.approx(whole[-1]["train/loss"], rel=1e-3)


@pytest.mark.parametrize("method", ["flyp", "star_ft", "carot", "r_adapter"])
def test_methods_without_a_cross_entropy_over_classes_refuse_weights(trial, method):
    with pytest.raises(ConfigError, match="has no such weights"):
        short(trial, method, class_weights="auto")


def test_an_unknown_class_is_refused_before_the_start(trial):
    with pytest.raises(ConfigError) as caught:
        check_trial(short(trial, "ft", class_weights={"aple": 2.0}), [])
    assert (caught.value.key, caught.value.hint) == ("class_weights", "did you mean 'apple'?")
