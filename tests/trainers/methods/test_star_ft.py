"""StarFT's divergence on spurious texts against sums over pairs, and the texts themselves."""

import numpy as np
import pytest
import torch

from tests.trainers.methods.by_hand import (
    at,
    contrastive,
    differences,
    log_softmax,
    outputs,
    random_batch,
)
from tests.trainers.tiny_models import student_of
from trainers.methods.base import Batch, StepRandom
from trainers.methods.star_ft import (
    StarFineTuning,
    spurious_divergence,
    spurious_templates,
)

CLASSES = (0, 1, 0, 2, 1)
STAR_FT = StarFineTuning()


def divergence(before, after, classes):
    """The mean KL divergence over the texts of other classes, written out."""
    total = 0.0
    for i in range(len(classes)):
        others = [j for j in range(len(classes)) if classes[j] != classes[i]]
        p, q = log_softmax(before[i, others]), log_softmax(after[i, others])
        total += sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return total / len(classes)


def arrays(outputs):
    """Features, features of the spurious texts, scale."""
    f, t = outputs.features.detach().numpy(), outputs.text_features.detach().numpy()
    return f, t[-1], outputs.logit_scale.item()


def test_loss_is_the_contrastive_one_and_the_weighted_divergence(zero_shot):
    batch = random_batch(classes=CLASSES, kinds=2)
    assert batch.zero_shot is not None
    f, u, s = arrays(batch.student)
    f0, u0, s0 = arrays(batch.zero_shot)
    captions = batch.student.text_features[0].detach().numpy()
    loss = STAR_FT.loss(batch, at(zero_shot, 4, steps=10))
    assert loss.task.item() == pytest.approx(contrastive(s * f @ captions.T), rel=1e-10)
    # The pre-trained scale stands on both sides.
    by_hand = divergence(s0 * f0 @ u0.T, s0 * f @ u.T, CLASSES)
    assert loss.reg.item() == pytest.approx(by_hand, rel=1e-10)
    assert loss.total.item() == pytest.approx(loss.task.item() + 0.5 * 0.6 * by_hand, rel=1e-10)


def test_gradients_of_the_divergence_equal_its_differences():
    batch = random_batch(classes=CLASSES, kinds=2)
    assert batch.zero_shot is not None
    f, u, _ = arrays(batch.student)
    f0, u0, s0 = arrays(batch.zero_shot)
    spurious_divergence(batch).backward()

    def of(features, texts):
        return divergence(s0 * f0 @ u0.T, s0 * features @ texts.T, CLASSES)

    features, texts = batch.student.features.grad, batch.student.text_features.grad
    assert features is not None
    assert texts is not None
    np.testing.assert_allclose(features, differences(lambda x: of(x, u), f), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(texts[1], differences(lambda x: of(f, x), u), rtol=1e-6, atol=1e-8)
    assert not texts[0].any()  # captions have no part in it
    assert batch.student.logit_scale.grad is None


def test_a_batch_of_one_class_has_nothing_to_compare():
    batch = random_batch(classes=(1, 1, 1), kinds=2)
    reg = spurious_divergence(batch)
    reg.backward()
    assert reg.item() == 0
    assert batch.student.features.grad is not None
    assert not batch.student.features.grad.any()


def test_a_spurious_text_is_the_caption_in_a_template(zero_shot):
    labels, draw = [0, 2, 1], StepRandom(0, 9, batch_size=3)
    captions, spurious = STAR_FT.texts(labels, zero_shot.prompts, draw)
    assert captions == ["a photo of a cat.", "a photo of a fish.", "a photo of a dog."]
    for caption, text in zip(captions, spurious, strict=True):
        assert text.replace(caption.removesuffix("."), "{}") in spurious_templates("background")
    assert StarFineTuning(reg_weight=0).texts(labels, zero_shot.prompts, draw) == [captions]
    (alone,) = StarFineTuning(task="cross_entropy").texts(labels, zero_shot.prompts, draw)
    assert alone == spurious


def test_with_cross_entropy_the_text_encoder_stays_frozen(zero_shot):
    method = StarFineTuning(task="cross_entropy", reg_schedule="constant")
    assert not method.per_image
    student = student_of(zero_shot, method)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    images, labels = torch.randn(4, 3, 32, 32), [0, 1, 2, 1]
    texts = method.texts(labels, zero_shot.prompts, StepRandom(0, 0, batch_size=4))
    tokens = zero_shot.tokenize(texts[0])[None]
    u0 = zero_shot.encode_tokens(tokens[0])
    scale = torch.tensor(zero_shot.logit_scale)
    teacher = outputs(zero_shot.image_features(images), u0[None], scale)
    found = student(images, tokens)
    loss = method.loss(Batch(torch.tensor(labels), found, teacher), at(zero_shot, 0))
    logits = found.logits.detach().double().numpy()
    nll = -np.mean([log_softmax(row)[y] for row, y in zip(logits, labels, strict=True)])
    assert loss.task.item() == pytest.approx(nll, rel=1e-5)
    before, after = (
        zero_shot.logit_scale * (f.detach().double() @ u0.double().T).numpy()
        for f in (teacher.features, found.features)
    )
    by_hand = divergence(before, after, tuple(labels))
    assert by_hand > 1e-4
    assert loss.reg.item() == pytest.approx(by_hand, rel=1e-3)
