"""Shared features against open_clip's, and runs with an empty, a full and no cache."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainers.curves import changed, configured, first_batch, short, untimed
from trainers.data.store import CACHE_VARIABLE
from trainers.data.transforms import normalise
from trainers.evaluation.evaluate import evaluate
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import class_maps, classify, evaluate_run
from trainers.loop.state import load_split, start
from trainers.loop.zero_shot_features import ZeroShotFeatures
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


def shared(run, views, at_once=8):
    parts = range(0, len(views), at_once)
    features = run.zero_shot_features
    return torch.cat([features.of_views(views[n : n + at_once], 0, n, at_once) for n in parts])


def by_open_clip(run, views):
    images = normalise(views, run.zero_shot.image_input)
    with torch.no_grad():
        return run.zero_shot.clip.encode_image(images, normalize=True)


@pytest.mark.parametrize(
    "change",
    [{}, {"seed": 1}, {"data__crop_area": (0.08, 1.0)}, {"optim__batch_size": 6}],
    ids=["same", "seed", "crops", "batch"],
)
def test_features_of_views_are_open_clips(trial, change):
    """Each configuration finds its own, beside those of others."""
    for config in (trial, changed(trial, **change)):
        run = start(config)
        views, _ = first_batch(run)
        for at_once in (8, 3, 8):
            found = shared(run, views, at_once).numpy()
            expected = by_open_clip(run, views).numpy()
            np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=1e-6)


def test_features_of_random_texts_are_open_clips(trial):
    run = start(trial)
    features, clip, words = run.zero_shot_features, run.zero_shot.clip, run.zero_shot.vocabulary
    for length, step in ((8, 0), (8, 3), (3, 3)):
        tokens = random_texts(words, 16, length, seed=0, step=step)
        expected = clip.encode_text(tokens, normalize=True)
        for _ in range(2):
            found = features.of_random_texts(16, length, step)
            torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=1e-6)


class Recorded:
    """A run with the number of images that its zero-shot model encoded."""

    def __init__(self, config):
        self.encoded = 0
        self.reports = []
        for report in fine_tune(config):
            if not self.reports:
                report.run.zero_shot.visual.register_forward_pre_hook(self._count)
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
    run = start(trial)
    (views, _), images = first_batch(run), load_split(trial, "val")["sketch"]
    before = shared(run, views), run.zero_shot_features.of_images(images)
    clip = copy.deepcopy(run.zero_shot.clip)
    with torch.no_grad():
        clip.visual.proj.mul_(torch.linspace(0.5, 1.5, 128))
    run.zero_shot = replace(run.zero_shot, clip=clip, digest=model_digest(clip, {}))
    run.zero_shot_features = ZeroShotFeatures(run.zero_shot, trial, run.precision)
    after = shared(run, views), run.zero_shot_features.of_images(images)
    torch.testing.assert_close(after[0], by_open_clip(run, views), rtol=ROUNDING, atol=1e-6)
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
        start(trial).zero_shot_features.of_random_texts(16, 8, 0)
    assert len(list(folder.glob("*.features"))) == 3


def test_the_zero_shot_model_of_stored_features_is_an_unchanged_student(trial):
    """To the last bit, so that both ends of a line without training are equal."""
    for _ in range(2):
        run, images = start(trial), load_split(trial, "val")["sketch"]
        before = run.zero_shot_features.classifier(images)
        for views, _ in run.zero_shot_features.batches.of(images):
            assert torch.equal(before(views), classify(run, views))


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
    evaluate_run(start(trial), "val", images)
    assert sum(encoded) == sum(map(len, images.values()))


def test_the_features_of_a_sample_are_those_of_the_whole(trial, encoded):
    features, whole = start(trial).zero_shot_features, load_split(trial, "val")["sketch"]
    sample = whole.sampled(5)
    found = features.of_images(sample)
    assert torch.equal(found, features.of_images(whole)[list(sample.eval_rows)])
    assert sum(encoded) == len(whole)


def test_the_parts_of_a_step_share_random_texts(trial, monkeypatch):
    texts, encode = [], ZeroShotModel.encode_tokens

    def count(zero_shot, tokens):
        texts.append(len(tokens))
        return encode(zero_shot, tokens)

    monkeypatch.setattr(ZeroShotModel, "encode_tokens", count)
    config = short(trial, {"name": "lipsum_ft", "text_count": 16}, optim__micro_batch_size=2)
    list(fine_tune(changed(config, zero_shot_cache_gb=0)))
    assert texts == [16] * config.steps


def test_a_head_without_memory_scores_the_same_images_in_parts(trial, monkeypatch):
    run, images = start(trial), load_split(trial, "val")["sketch"]
    batches, logits = run.zero_shot_features.batches, ZeroShotModel.logits

    def limited(zero_shot, features):
        if len(features) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits(zero_shot, features)

    class_map = class_maps(run, {"sketch": images})["sketch"]
    found = []
    for of_any in (logits, limited):
        monkeypatch.setattr(ZeroShotModel, "logits", of_any)
        classifier = run.zero_shot_features.classifier(images)
        found.append(evaluate([classifier], images, batches, class_map=class_map)[1][0])
    assert found[1] == pytest.approx(found[0])


def test_without_a_limit_nothing_is_stored(trial, folder):
    list(fine_tune(changed(trial, zero_shot_cache_gb=0, steps=1)))
    assert not folder.exists()
