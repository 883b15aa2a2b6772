"""The contrastive loss against sums over pairs, and the captions that go with images."""

from collections import Counter

import pytest

from tests.trainers.methods.by_hand import assert_gradient, at, contrastive, random_batch
from trainers.methods.base import StepRandom
from trainers.methods.flyp import ContrastiveFineTuning
from trainers.texts import Prompts, named_templates

FLYP = ContrastiveFineTuning()


def test_loss_and_gradients_equal_the_sum_over_pairs(zero_shot):
    batch = random_batch(classes=(0, 1, 0, 2))  # images of one class are told apart, too
    f, _, (t,), s = (tensor.detach().numpy() for tensor in batch.student)
    loss = FLYP.loss(batch, at(zero_shot, 0))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(contrastive(s * f @ t.T), rel=1e-12)
    assert loss.reg is None
    assert_gradient(batch.student.features, lambda x: contrastive(s * x @ t.T), f)
    assert_gradient(batch.student.text_features, lambda x: contrastive(s * f @ x.T), t)
    assert_gradient(batch.student.logit_scale, lambda x: contrastive(x * f @ t.T), s)


def test_captions_put_the_class_in_every_template():
    prompts = Prompts(("cat", "dog"), named_templates("simple_imagenet"))
    labels = [i % 2 for i in range(700)]
    (captions,) = FLYP.texts(labels, prompts, StepRandom(seed=0, step=3, batch_size=700))
    for label, caption in zip(labels, captions, strict=True):
        assert caption in prompts.of(prompts.names[label])
    drawn = Counter(caption.replace("cat", "{}").replace("dog", "{}") for caption in captions)
    assert set(drawn) == set(prompts.templates)
    assert all(60 < times < 140 for times in drawn.values())  # of 100 on average


def test_captions_do_not_depend_on_the_number_of_workers(zero_shot):
    labels, prompts = [0, 1, 2, 2, 1, 0], zero_shot.prompts
    (alone,) = FLYP.texts(labels, prompts, StepRandom(7, 5, batch_size=6))
    for rank in (0, 1):
        draw = StepRandom(7, 5, batch_size=6, rank=rank, world_size=2)
        assert FLYP.texts(labels[rank::2], prompts, draw) == (alone[rank::2],)
    assert FLYP.texts(labels, prompts, StepRandom(7, 6, batch_size=6)) != (alone,)
