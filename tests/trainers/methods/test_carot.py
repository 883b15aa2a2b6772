"""CaRot's terms against sums over entries, its teacher's schedule, and where projections are."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainers.methods.by_hand import (
    assert_gradient,
    at,
    contrastive,
    log_softmax,
    random_batch,
)
from tests.trainers.tiny_models import KINDS, random_model, student_of
from trainers.errors import ConfigError
from trainers.methods.carot import CaRot, projections
from trainers.models.image import pooled_features
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts

CLASSES = (0, 1, 0, 2)
RNG = np.random.default_rng(1)
WV, WT = RNG.standard_normal((6, 5)), RNG.standard_normal((3, 5))


def projecting(wv, wt):
    """Trained parameters of these values."""
    named = {"visual.proj": wv, "text.clip.text_projection": wt}
    return {name: nn.Parameter(torch.tensor(value)) for name, value in named.items()}


def soft_cross_entropy(teacher, student):
    """By rows and by columns, added."""
    total = 0.0
    for t, s in ((teacher, student), (teacher.T, student.T)):
        for i in range(len(t)):
            total -= float(np.dot(np.exp(log_softmax(t[i])), log_softmax(s[i])))
    return total / len(teacher)


def regulariser(scores, teacher, wv, wt):
    """With the weights of the authors' code."""
    orthogonality = np.linalg.norm(wv.T @ wv - np.eye(wv.shape[1]))
    cross = np.linalg.norm(wv @ wt.T)
    return 0.2 * orthogonality + 0.05 * cross + 1.5 * soft_cross_entropy(teacher, scores)


def scores_of(outputs):
    features, (texts,) = outputs.features.detach(), outputs.text_features.detach()
    return (outputs.logit_scale.detach() * features @ texts.T).numpy()


def test_loss_and_its_gradients_equal_the_sums(zero_shot):
    batch = random_batch(classes=CLASSES)
    weights = projecting(WV, WT)
    scores, teacher = scores_of(batch.student), scores_of(batch.average)
    loss = CaRot().loss(batch, at(zero_shot, 1, weights=weights))
    loss.reg.backward()
    assert loss.task.item() == pytest.approx(contrastive(scores), rel=1e-10)
    by_hand = regulariser(scores, teacher, WV, WT)
    assert loss.reg.item() == pytest.approx(by_hand, rel=1e-10)
    assert loss.total.item() == pytest.approx(contrastive(scores) + by_hand, rel=1e-10)

    f, s = batch.student.features.detach().numpy(), batch.student.logit_scale.item()
    t = batch.student.text_features[0].detach().numpy()
    image, text = weights.values()
    assert_gradient(image, lambda x: regulariser(scores, teacher, x, WT), WV)
    assert_gradient(text, lambda x: regulariser(scores, teacher, WV, x), WT)
    assert_gradient(batch.student.features, lambda x: regulariser(s * x @ t.T, teacher, WV, WT), f)
    assert batch.student.text_features.grad is not None


@pytest.mark.parametrize("alone", ["orthogonality_weight", "cross_weight"])
def test_each_norm_may_be_alone(alone, zero_shot):
    off = dict.fromkeys(("orthogonality_weight", "cross_weight", "distillation_weight"), 0)
    step = at(zero_shot, 1, weights=projecting(WV, WT))
    loss = CaRot(**off | {alone: 2}).loss(random_batch(classes=CLASSES), step)
    matrix = {"orthogonality_weight": WV.T @ WV - np.eye(5), "cross_weight": WV @ WT.T}[alone]
    assert loss.reg.item() == pytest.approx(2 * np.linalg.norm(matrix), rel=1e-10)


def test_the_first_step_does_not_distil(zero_shot):
    method = CaRot(orthogonality_weight=0, cross_weight=0)
    batch = random_batch(classes=CLASSES)
    assert method.loss(batch, at(zero_shot, 0)).reg.item() == 0
    assert method.loss(batch, at(zero_shot, 1)).reg.item() > 0


def test_orthonormal_projections_have_no_penalty(zero_shot):
    weights = projecting(np.eye(6, 4), np.zeros((3, 4)))
    method = CaRot(distillation_weight=0)
    loss = method.loss(random_batch(classes=CLASSES), at(zero_shot, 0, weights=weights))
    loss.reg.backward()
    assert loss.reg.item() == 0
    for parameter in weights.values():
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("steps", [7, 50, 333, 25_000])
def test_the_average_is_updated_as_in_the_authors_run(steps):
    """Of 25,000 steps: at every 500th, with a momentum that rises over the first 5,000."""
    decays = [CaRot().average_decay(step, steps) for step in range(steps)]
    updated = [step for step, decay in enumerate(decays) if decay != 1]
    every = {-(-number * steps // 50) for number in range(50)}
    assert updated == sorted(every - {steps})
    if steps == 25_000:
        expected = [0.05 + 0.085 * number for number in range(10)] + 40 * [0.9]
        assert [decays[step] for step in updated] == pytest.approx(expected)


PROJECTED = sorted(set(KINDS) - {"no-projection", "roberta"})


@pytest.mark.parametrize("kind", PROJECTED)
def test_the_projections_are_what_every_feature_goes_through(kind, tmp_path):
    model = random_model(tmp_path, kind)
    CaRot().check(model)
    zero_shot = load_zero_shot(model, Prompts(("cat", "dog"), ("a {}.", "a photo of a {}.")))
    student = student_of(zero_shot, CaRot())
    image, text = projections(student.trained)
    assert image.shape[1] == text.shape[1] == 16
    size = zero_shot.image_input.size
    images = torch.randn(3, 3, size, size)
    tokens = zero_shot.tokenize(["a cat", "two dogs in the rain", "fish"])
    tower = student.text
    with torch.no_grad():
        assert pooled_features(student.visual, images).std(dim=0).min() > 0
        assert tower(tokens).std(dim=0).min() > 0
        image.zero_()
        text.zero_()
        # What is left is a bias, where there is one.
        assert pooled_features(student.visual, images).std(dim=0).max() == 0
        assert tower(tokens).std(dim=0).max() == 0


def test_a_model_without_projections_needs_zero_weights(tmp_path):
    text_without = random_model(tmp_path, "no-projection")
    with pytest.raises(ConfigError, match=r"'carot'.*the text encoder of this model has no linear"):
        CaRot().check(text_without)
    CaRot(orthogonality_weight=0, cross_weight=0).check(text_without)
    vision = KINDS["timm"]["vision_cfg"] | {"timm_proj": "mlp"}
    image_without = random_model(tmp_path, "timm", vision_cfg=vision)
    with pytest.raises(ConfigError, match="the image encoder of this model has no linear"):
        CaRot().check(image_without)
