"""A worker keeps the zero-shot model of a trial for the next one."""

import gc
import os
import weakref

import pytest
import torch

from tests.trainers.curves import short, untimed
from tests.trainers.tiny_models import random_model
from trainers.fine_tune import fine_tune
from trainers.loop import setup as loop
from trainers.loop.setup import KeptModel, set_up
from trainers.models.config import ModelConfig
from trainers.models.zero_shot import load_zero_shot
from trainers.texts import Prompts

PROMPTS = Prompts(("cat", "dog"), ("a {}.",))
CPU = torch.device("cpu")


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded, one entry for each time."""
    found = []

    def counted(model, *options):
        found.append(model.name)
        return load_zero_shot(model, *options)

    monkeypatch.setattr(loop, "load_zero_shot", counted)
    return found


def reports(config, kept=None):
    return [untimed(report) for report in fine_tune(config, kept=kept)]


@pytest.mark.parametrize("method", ["lipsum_ft", "flyp"])
def test_a_later_training_is_as_in_a_fresh_process(method, trial, loads):
    config = short(trial, method, steps=2, eval__every=2)
    alone = reports(config)
    kept = KeptModel()
    for other in ("ft", "flyp"):
        reports(short(trial, other, steps=2, eval__every=2), kept)
    assert reports(config, kept) == alone
    assert len(loads) == 2, "one for the training alone, one for all that followed"


def test_a_precision_leaves_the_kept_model_as_it_was(trial, loads):
    kept = KeptModel()
    exact, rounded = (short(trial, "lipsum_ft", precision=name) for name in ("fp32", "bf16"))
    before = reports(exact, kept)
    assert reports(rounded, kept) != before
    assert reports(exact, kept) == before
    assert len(loads) == 1


def test_other_prompts_and_other_models_are_loaded(loads, tmp_path):
    kept, first = KeptModel(), random_model(tmp_path, "clip")
    turned = Prompts(PROMPTS.names[::-1], PROMPTS.templates)
    for model, prompts in ((first, PROMPTS), (first, turned), (ModelConfig(), turned)):
        expected = load_zero_shot(model, prompts)
        for _ in range(2):
            found = kept.of(model, prompts, CPU)
            assert found.digest == expected.digest
            assert torch.equal(found.head, expected.head)
    assert len(loads) == 3


def test_a_file_that_has_changed_is_read_again(loads, tmp_path):
    kept, model = KeptModel(), random_model(tmp_path, "clip")
    before = kept.of(model, PROMPTS, CPU)
    os.utime(model.files[-1], ns=(1, 1))
    assert kept.of(model, PROMPTS, CPU) is not before
    assert kept.of(model, PROMPTS, CPU).digest == before.digest
    assert len(loads) == 2


def test_a_model_that_a_method_has_changed_is_not_kept(loads):
    kept = KeptModel()
    digest = kept.of(ModelConfig(), PROMPTS, CPU).digest
    next(kept.of(ModelConfig(), PROMPTS, CPU).visual.parameters()).data.mul_(2)
    with torch.no_grad():
        kept.of(ModelConfig(), PROMPTS, CPU).head.mul_(2)
    again = kept.of(ModelConfig(), PROMPTS, CPU)
    assert again.head.norm(dim=1).allclose(torch.ones(2))
    assert again.digest == digest


def test_one_model_is_kept_which_is_freed_before_the_next_is_loaded(trial, tmp_path, monkeypatch):
    kept, alive = KeptModel(), weakref.WeakSet()

    def alone(*options):
        gc.collect()
        assert not alive
        model = load_zero_shot(*options)
        alive.add(model)
        return model

    monkeypatch.setattr(loop, "load_zero_shot", alone)
    for kind in ("clip", "resnet", "clip"):
        config = short(trial, "lipsum_ft", model=random_model(tmp_path, kind).model_dump())
        set_up(config, kept=kept)
    assert len(alive) == 1
