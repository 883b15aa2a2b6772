"""R-Adapter's loss against sums over pairs, and what of the adapters is kept."""

from itertools import product

import numpy as np
import pytest
import torch

from tests.trainers.methods.by_hand import assert_gradient, at, log_softmax, random_batch
from tests.trainers.tiny_models import random_model, student_of
from trainers.errors import ConfigError
from trainers.methods.base import StepRandom
from trainers.methods.r_adapter import ResidualAdapter
from trainers.models.adapters import Adapter
from trainers.models.averaging import swapped_in

CLASSES = (0, 1, 0, 2, 1, 0)
METHOD = ResidualAdapter()


def multi_positive(f, t, s, classes, margin, eps):
    """MPM-NCE image by image, text by text; the margin is one of cosines."""
    n, total = len(classes), 0.0
    scores = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            other = classes[i] != classes[j]
            scores[i, j] = s * (float(np.dot(f[i], t[j])) + (margin if other else 0))
    for i in range(n):
        positives = sum(c == classes[i] for c in classes)
        by_image, by_text = log_softmax(scores[i, :]), log_softmax(scores[:, i])
        for j in range(n):
            same = classes[i] == classes[j]
            label = (1 - eps) / positives if same else eps / (n - positives)
            total -= label * (by_image[j] + by_text[j]) / 2
    return total / n


def test_loss_and_its_gradients_equal_the_sum_over_pairs(zero_shot):
    batch = random_batch(classes=CLASSES)
    f = batch.student.features.detach().numpy()
    t = batch.student.text_features[0].detach().numpy()

    def of(features, texts):
        return multi_positive(features, texts, 7.0, CLASSES, margin=0.05, eps=0.02)

    loss = METHOD.loss(batch, at(zero_shot, 0))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(of(f, t), rel=1e-10)
    assert_gradient(batch.student.features, lambda x: of(x, t), f)
    assert_gradient(batch.student.text_features, lambda x: of(f, x), t)


def test_a_batch_of_one_class_has_only_positives(zero_shot):
    batch = random_batch(classes=(1, 1, 1))
    loss = METHOD.loss(batch, at(zero_shot, 0)).total
    loss.backward()
    f, (t,) = batch.student.features.detach(), batch.student.text_features.detach()
    by_hand = multi_positive(f.numpy(), t.numpy(), 7.0, (1, 1, 1), margin=0, eps=0)
    assert loss.item() == pytest.approx(by_hand, rel=1e-10)
    assert bool(batch.student.features.grad.isfinite().all())


def test_what_is_kept_is_alpha_of_the_averaged_adapters(zero_shot):
    student = student_of(zero_shot, METHOD)
    assert METHOD.ema == 0.999
    rng = torch.Generator().manual_seed(1)
    average = {n: 0.3 * torch.randn(p.shape, generator=rng) for n, p in student.trained.items()}
    with swapped_in(student.trained, METHOD.eval_weights(average, {}, None)):
        state = student.plain_state()
    for tower, encoder in (("visual", zero_shot.visual), ("text", zero_shot.clip)):
        for site in product(range(2), ("attn.out_proj", "mlp.c_proj")):
            layer = "transformer.resblocks.{}.{}".format(*site)
            place = "visual" if tower == "visual" else "text.clip"
            adapter = f"{place}.{layer}.parametrizations.weight.0"
            a = average[f"{adapter}.map"].double().numpy()
            merge = np.eye(len(a)) + 0.5 * average[f"{adapter}.gain"].item() * a
            for part in ("weight", "bias"):
                by_hand = merge @ getattr(encoder.get_submodule(layer), part).double().numpy()
                found = state[f"{tower}.{layer}.{part}"]
                np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_an_encoder_without_transformer_blocks_is_refused(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"method.name = 'r_adapter': .*name a model with two"):
        METHOD.check(random_model(tmp_path, kind))


def test_a_step_drops_adapters_by_its_seed_and_scales_the_rest(zero_shot):
    method, student = METHOD.model_copy(update={"drop_rate": 0.25}), student_of(zero_shot)
    method.prepare(student)
    adapters = [part for part in student.modules() if isinstance(part, Adapter)]

    def scales(seed, step):
        with method.during_step(student, StepRandom(seed, step, batch_size=8)):
            return [adapter.scale.item() for adapter in adapters]

    seen = [scales(0, step) for step in range(300)]
    found = np.array(seen)  # (steps, adapters)
    np.testing.assert_allclose(found[found > 0], 4 / 3)
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.05)
    assert scales(0, 7) == seen[7]
    assert [scales(1, step) for step in range(300)] != seen
    assert {adapter.scale.item() for adapter in adapters} == {1.0}
