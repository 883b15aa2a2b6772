"""Evaluation of a small classifier of real images, whose logits are known in full as well."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.images import file_of
from tests.trainers import measures_by_hand as by_hand
from trainers.data.class_map import ClassMap
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import ConfigError
from trainers.evaluation.evaluate import EvalBatches, domain_sums, measure_domain, measures_of
from trainers.evaluation.metrics import flat_metrics
from trainers.evaluation.predictions import Predictions
from trainers.models.image import ImageInput

INPUT = ImageInput(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")
FOURS = EvalBatches(INPUT, 4, CPU)
CLASSES = ("ant", "bee", "cat", "dog")
LABELS = (0, 0, 0, 0, 1, 1, 3, 3, 3)
SAME = ClassMap(((0,), (1,), (2,), (3,)))
SCALE = 9.0
PAINTED = DataConfig(id_domain="real", ood_domains=("sketch", "clipart"))


def pattern(label):
    """What the images of a class have in common, (8, 8, 3) of 0 and 1."""
    return np.random.default_rng(100 + label).integers(0, 2, (8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Nine images; none of a cat."""
    root = tmp_path_factory.mktemp("images")
    images = []
    for n, label in enumerate(LABELS):
        noise = np.random.default_rng(n).integers(0, 192, (8, 8, 3), dtype=np.uint8)
        image = file_of(noise + 64 * pattern(label))
        images.append(LabelledImage(image, f"{n}.png", label))
    write_images(part_path(root, "real", "val"), images, CLASSES)
    return root


@pytest.fixture
def images(root):
    return ImageDataset(root, "real", "val")


def encoder(seed):
    """L2-normalised features of 5 dimensions; those of other seeds differ a little."""
    base = torch.randn(3 * 8 * 8, 5, generator=torch.Generator().manual_seed(0))
    change = torch.randn(3 * 8 * 8, 5, generator=torch.Generator().manual_seed(seed))
    return lambda images: functional.normalize(images.flatten(1) @ (base + 0.1 * change), dim=-1)


def classifier(seed):
    """Logits (B, 4) of images."""
    encode = encoder(seed)
    patterns = np.stack([pattern(label) for label in range(len(CLASSES))])
    head = encoder(1)(torch.tensor(patterns).permute(0, 3, 1, 2) - 0.5).T

    return lambda images: SCALE * encode(images) @ head


def known(images):
    """All images as the model is given them."""
    views = np.stack([np.asarray(images.decode(n)) for n in range(len(images))])
    return (torch.tensor(views).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25


@pytest.mark.parametrize("batch_size", [2, 4, 9])
def test_every_measure_is_that_by_hand(images, batch_size):
    batches = EvalBatches(INPUT, batch_size, CPU)
    _, (found,) = measure_domain([classifier(2)], images, batches, class_map=SAME)
    expected = by_hand.measures(classifier(2)(known(images)).numpy(), np.array(LABELS))
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected["acc"] != expected["class_acc"]


def test_a_class_map_leaves_images_out_of_the_score(images):
    class_map = ClassMap(((), (0, 1), (2,), (3,)))  # the ants of this domain are none of the ID
    # The first batch has only ants.
    number, (found,) = measure_domain([classifier(2)], images, FOURS, class_map=class_map)
    labels = np.array(LABELS)
    logits = classifier(2)(known(images)).numpy()[labels != 0]
    own = np.stack([logits[:, :2].max(axis=1), logits[:, 2], logits[:, 3]], axis=1)
    columns = np.array([{1: 0, 3: 2}[label] for label in labels[labels != 0]])
    assert found == pytest.approx(by_hand.measures(own, columns), rel=1e-4)
    assert number == 5
    only_cats = ClassMap(((), (), (2,), ()))
    with pytest.raises(ConfigError, match="real/val: none of its images is of a class"):
        measure_domain([classifier(2)], images, FOURS, class_map=only_cats)


def test_predictions_are_of_the_scored_images_in_their_own_classes(images):
    """Of the last model, beside those of the first one."""
    class_map = ClassMap(((), (0, 1), (2,), (3,)))
    predictions = Predictions(images, class_map, FOURS)
    models = [classifier(1), classifier(3), classifier(2)]
    measure_domain(models, images, FOURS, class_map=class_map, note=predictions.add)
    rows = predictions.table().to_pydict()
    assert predictions.classes == ["bee", "cat", "dog"]
    assert rows["image"] == [4, 5, 6, 7, 8]
    assert rows["label"] == [0, 0, 2, 2, 2]
    for seed, model in ((2, "predicted"), (1, "zero_shot")):
        of_map = classifier(seed)(known(images))[4:].numpy()
        own = np.stack([of_map[:, :2].max(axis=1), of_map[:, 2], of_map[:, 3]], axis=1)
        assert rows[model] == own.argmax(axis=1).tolist()
        confidence = "confidence" if model == "predicted" else "zero_shot_confidence"
        expected = by_hand.probabilities(own).max(axis=1)
        assert rows[confidence] == pytest.approx(expected, rel=1e-5)


def test_certainty_is_in_the_last_bin_and_what_is_no_number_stays_visible():
    sums = domain_sums(torch.tensor([[500.0, 0.0]] * 2), torch.tensor([0, 1]))
    assert sums.tolist() == [1, 1, 1, 0, 500] + [0] * 14 + [-1]
    broken = measures_of(domain_sums(torch.tensor([[math.nan, 1.0]]), torch.tensor([0])))
    assert math.isnan(broken["nll"])
    assert math.isnan(broken["ece"])


def test_means_are_over_domains_and_over_id_and_ood():
    of = {"nll": 1.0, "ece": 0.5}
    flat = flat_metrics(
        {
            "real": of | {"acc": 80.0, "nll": 10.0},
            "sketch": of | {"acc": 20.0},
            "clipart": {"acc": 60.0, "nll": 4.0, "ece": 0.1},
        },
        PAINTED,
        "val",
    )
    assert flat["id_val/acc"] == 80
    assert flat["ood_val/mean_acc"] == 40
    assert flat["val/mean_acc"] == 60
    assert flat["ood_val/mean_nll"] == 2.5
    assert flat["val/mean_nll"] == 5.0  # the geometric mean of 10 and 2.5
    assert flat["ood_val/mean_ece"] == pytest.approx(0.3)
