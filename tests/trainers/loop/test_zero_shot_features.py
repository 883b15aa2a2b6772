"""Shared features against open_clip's, and runs with an empty, a full and no cache."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainers.curves import changed, configured, first_batch, short, untimed
from trainers.data.store import CACHE_VARIABLE
from trainers.data.transforms import normalise
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.loop.measure import classify, measure_zero_shot
from trainers.loop.setup import set_up
from trainers.loop.training import start
from trainers.models import student as student_module
from trainers.models import zero_shot as zero_shot_module
from trainers.models.image import pooled_features
from trainers.models.text_head import model_digest
from trainers.models.zero_shot import ZeroShotModel
from trainers.texts import random_texts

ROUNDING = 2**-11
"""Greatest relative change of a float that is rounded to float16."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "lipsum-tune-features"


@pytest.fixture
def trial(trial):
    return changed(trial, zero_shot_cache_gb=1)


def shared(setup, views, size=8):
    firsts, features = range(0, len(views), size), setup.zero_shot_features
    return torch.cat([features.of_views(views[n : n + size], 0, n, size) for n in firsts])


def by_open_clip(setup, views):
    images = normalise(views, setup.zero_shot.image_input)
    with torch.no_grad():
        return setup.zero_shot.clip.encode_image(images, normalize=True)


@pytest.mark.parametrize(
    "change",
    [{}, {"seed": 1}, {"data__crop_area": (0.08, 1.0)}, {"optim__batch_size": 6}],
    ids=["same", "seed", "crops", "batch"],
)
def test_features_of_views_are_open_clips(trial, change):
    """Each configuration finds its own, beside those of others."""
    for config in (trial, changed(trial, **change)):
        training = start(config)
        views, _ = first_batch(training)
        for size in (8, 3, 8):
            found = shared(training.setup, views, size).numpy()
            expected = by_open_clip(training.setup, views).numpy()
            np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=1e-6)


def test_features_of_random_texts_are_open_clips(trial):
    setup = set_up(trial)
    clip, words = setup.zero_shot.clip, setup.zero_shot.vocabulary
    for length, step in ((8, 0), (8, 3), (3, 3)):
        tokens = random_texts(words, 16, length, seed=0, step=step)
        expected = clip.encode_text(tokens, normalize=True)
        for _ in range(2):
            found = setup.zero_shot_features.of_random_texts(16, length, step)
            torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=1e-6)


class Recorded:
    """A run with the number of images that its zero-shot model encoded."""

    def __init__(self, config):
        self.encoded = 0
        self.reports = []
        for report in fine_tune(config):
            if not self.reports:
                report.training.setup.zero_shot.visual.register_forward_pre_hook(self._count)
            self.reports.append(untimed(report))

    def _count(self, module, inputs):
        self.encoded += len(inputs[0])


@pytest.mark.parametrize("method", ["lipsum_ft", "kd", "car_ft"])
def test_a_full_cache_replaces_the_zero_shot_model(method, trial):
    few = changed(trial, steps=4, eval__every=1, data__ood_domains=["sketch"])
    few = changed(few, data__crop_area=(0.08, 1.0))
    config = configured(few, method)
    live = Recorded(changed(config, zero_shot_cache_gb=0))
    cold, warm = Recorded(config), Recorded(config)
    # Of the three steps after the first report, and of the predictions after the last one.
    images = 3 * config.optim.batch_size + 2 * 24
    assert (live.encoded, cold.encoded, warm.encoded) == (images, images, 0)
    assert cold.reports == warm.reports
    for found, exact in zip(warm.reports, live.reports, strict=True):
        assert found["train/reg"] == pytest.approx(exact["train/reg"], rel=2e-3, abs=1e-4)
        assert found["train/loss"] == pytest.approx(exact["train/loss"], rel=1e-3)


def test_other_weights_have_features_of_their_own(trial):
    training = start(trial)
    setup = training.setup
    (views, _), images = first_batch(training), load_split(trial, "val")["sketch"]
    before = shared(setup, views), setup.zero_shot_features.of_images(images)
    clip = copy.deepcopy(setup.zero_shot.clip)
    with torch.no_grad():
        clip.visual.proj.mul_(torch.linspace(0.5, 1.5, 128))
    other = replace(setup.zero_shot, clip=clip, digest=model_digest(clip, {}))
    changed_setup = replace(setup, zero_shot=other)
    after = shared(changed_setup, views), changed_setup.zero_shot_features.of_images(images)
    expected = by_open_clip(changed_setup, views)
    torch.testing.assert_close(after[0], expected, rtol=ROUNDING, atol=1e-6)
    for old, new in zip(before, after, strict=True):
        assert not torch.allclose(old, new, atol=1e-3)


def test_versions_of_libraries_have_features_of_their_own(trial, folder, tmp_path, monkeypatch):
    for package in ("", "pillow", "transformers", ""):
        if package:  # the record of a version that was never released
            record = tmp_path / package / f"{package}-0.0.1.dist-info"
            record.mkdir(parents=True)
            metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n"
            (record / "METADATA").write_text(metadata)
            monkeypatch.syspath_prepend(record.parent)
        set_up(trial).zero_shot_features.of_random_texts(16, 8, 0)
    assert len(list(folder.glob("*.records"))) == 3


def test_the_zero_shot_model_of_stored_features_is_an_unchanged_student(trial):
    """To the last bit, so that both ends of a line without training are equal."""
    for _ in range(2):
        setup, images = set_up(trial), load_split(trial, "val")["sketch"]
        student, features = setup.student(), setup.zero_shot_features.of_images(images)
        before = setup.zero_shot.logits(features).split(trial.eval.batch_size)
        for logits, (views, _) in zip(before, setup.batches.of(images), strict=True):
            assert torch.equal(logits, classify(setup, student, views))


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of images that models encode at a time, from here on."""
    numbers = []

    def count(visual, images):
        numbers.append(len(images))
        return pooled_features(visual, images)

    for module in (student_module, zero_shot_module):
        monkeypatch.setattr(module, "pooled_features", count)
    return numbers


def test_the_zero_shot_model_is_evaluated_once_before_the_first_step(trial, encoded):
    images = load_split(trial, "val")
    measure_zero_shot(set_up(trial), images)
    assert sum(encoded) == sum(map(len, images.values()))


def test_the_features_of_a_sample_are_those_of_the_whole(trial, encoded):
    features, whole = set_up(trial).zero_shot_features, load_split(trial, "val")["sketch"]
    sample = whole.sampled(5)
    found = features.of_images(sample)
    assert torch.equal(found, features.of_images(whole)[list(sample.eval_rows)])
    assert sum(encoded) == len(whole)


def test_the_micro_batches_of_a_step_share_random_texts(trial, monkeypatch):
    texts, encode = [], ZeroShotModel.encode_tokens

    def count(zero_shot, tokens):
        texts.append(len(tokens))
        return encode(zero_shot, tokens)

    monkeypatch.setattr(ZeroShotModel, "encode_tokens", count)
    config = short(trial, {"name": "lipsum_ft", "text_count": 16}, optim__micro_batch_size=2)
    list(fine_tune(changed(config, zero_shot_cache_gb=0)))
    assert texts == [16] * config.steps


def test_a_head_without_memory_scores_the_same_images_in_parts(trial, monkeypatch):
    images, logits = load_split(trial, "val"), ZeroShotModel.logits

    def limited(zero_shot, features):
        if len(features) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits(zero_shot, features)

    whole = measure_zero_shot(set_up(trial), images)
    monkeypatch.setattr(ZeroShotModel, "logits", limited)
    assert measure_zero_shot(set_up(trial), images) == pytest.approx(whole)


def test_without_a_limit_nothing_is_stored(trial, folder):
    list(fine_tune(changed(trial, zero_shot_cache_gb=0, steps=1)))
    assert not folder.exists()
